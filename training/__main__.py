"""`python -m training`: the four stages and the export. Each stage can be resumed; one seed determines everything.

Examples:
    python -m training all --folder runs/seed0
    python -m training align --folder runs/seed0 --processes 2
    python -m training all --folder runs/small-1 --recipe small --seed 1
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from training.build import build_model
from training.export import export
from training.language import train_language
from training.recipe import RECIPES, find
from training.stages import launch
from training.vision import train_vision

SHIPPED = Path("src/feathervlm/embedded/weights")

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
Folder = Annotated[Path, typer.Option(help="Directory of checkpoints and logs.")]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights and all data.")]
Named = Annotated[str, typer.Option("--recipe", help=f"Sizes and numbers of steps: {' or '.join(RECIPES)}.")]
Processes = Annotated[int, typer.Option(min=1, help="Number of processes of the stages align and tune.")]

StopAt = Annotated[int | None, typer.Option(help="Stop before this step.")]


@app.command()
def vision(folder: Folder, seed: Seed = 0, recipe: Named = "shipped") -> None:
    """Stage 1: train the vision encoder, unless the recipe uses that of the shipped weights."""
    plan = find(recipe)
    if plan.vision is None:
        typer.echo(f"the recipe {recipe!r} uses the vision encoder of the shipped weights")
        return
    torch.set_num_threads(1)
    size, run = plan.size, plan.run(seed)
    tower = build_model(size, seed).model.vision_tower
    train_vision(tower, size.patch, size.tower_width, folder, plan.vision, batch=plan.vision_batch, seed=seed, run=run)


@app.command()
def language(folder: Folder, seed: Seed = 0, recipe: Named = "shipped") -> None:
    """Stage 2: train the decoder as a language model."""
    torch.set_num_threads(1)
    plan = find(recipe)
    model = build_model(plan.size, seed)
    train_language(model, folder, plan, seed)


@app.command()
def align(
    folder: Folder,
    seed: Seed = 0,
    recipe: Named = "shipped",
    processes: Processes = 2,
    stop_at: StopAt = None,
) -> None:
    """Stage 3: train projector and later layers, after stages 1 and 2."""
    launch("align", folder, seed, find(recipe), processes, stop_at)


@app.command()
def tune(
    folder: Folder,
    seed: Seed = 0,
    recipe: Named = "shipped",
    processes: Processes = 2,
    stop_at: StopAt = None,
) -> None:
    """Stage 4: tune all layers, after stage 3."""
    launch("tune", folder, seed, find(recipe), processes, stop_at)


@app.command(name="all")
def everything(folder: Folder, seed: Seed = 0, recipe: Named = "shipped", processes: Processes = 2) -> None:
    """Run all stages in order; finished stages are skipped."""
    vision(folder, seed, recipe)
    language(folder, seed, recipe)
    align(folder, seed, recipe, processes, None)
    tune(folder, seed, recipe, processes, None)


@app.command(name="export")
def write(
    folder: Folder,
    recipe: Named = "shipped",
    target: Annotated[Path, typer.Option(help="The model directory to write.")] = SHIPPED,
) -> None:
    """Write the model directory from the latest checkpoint."""
    stages = [folder / f"{stage}.pt" for stage in ("tune", "align")]
    checkpoint = next((path for path in stages if path.exists()), None)
    if checkpoint is None:
        raise typer.BadParameter(f"there is no checkpoint in {folder}; train first")
    step = export(checkpoint, find(recipe).size, target)
    typer.echo(f"wrote {target} from {checkpoint}, step {step}")


@app.command()
def curves(folder: Folder, target: Annotated[Path, typer.Option(help="The picture.")] = Path("curves.png")) -> None:
    """Plot the logs of a run."""
    from training.curves import draw_curves

    draw_curves(folder, target)
    typer.echo(f"wrote {target}")


if __name__ == "__main__":
    app()
