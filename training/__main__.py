"""`python -m training`: the stages and the export. Each stage can be resumed; one seed determines everything.

Examples:
    python -m training all --folder runs/seed-0
    python -m training align --folder runs/seed-1 --seed 1 --processes 2
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from training.build import build_model
from training.cut import cut, measure_layers
from training.export import export
from training.language import train_language
from training.recipe import EMBEDDED
from training.stages import check_previous, latest, latest_checkpoint, launch
from training.vision import train_vision

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
Folder = Annotated[Path, typer.Option(help="Directory of checkpoints and logs.")]
Seed = Annotated[int, typer.Option(help="Seed of the initial weights and all data.")]
Processes = Annotated[int, typer.Option(min=1, help="Number of processes of the stages align and tune.")]
StopAt = Annotated[int | None, typer.Option(help="Stop before this step.")]


@app.callback()
def one_thread() -> None:
    """Use one thread; the matrices are so small that several threads would wait for each other."""
    torch.set_num_threads(1)


@app.command()
def vision(folder: Folder, seed: Seed = 0, stop_at: StopAt = None) -> None:
    """Stage 1: train the vision encoder."""
    train_vision(build_model(EMBEDDED.size, seed).model.vision_tower, folder, EMBEDDED, seed, stop_at=stop_at)


@app.command()
def language(folder: Folder, seed: Seed = 0, stop_at: StopAt = None) -> None:
    """Stage 2: train the decoder as a language model."""
    train_language(build_model(EMBEDDED.size, seed), folder, EMBEDDED, seed, stop_at=stop_at)


@app.command()
def align(folder: Folder, seed: Seed = 0, processes: Processes = 1, stop_at: StopAt = None) -> None:
    """Stage 3: train projector and later layers, after stages 1 and 2."""
    launch("align", folder, seed, EMBEDDED, processes, stop_at)


@app.command(name="cut")
def take_out(folder: Folder, seed: Seed = 0) -> None:
    """Stage 4: take out layers that contribute little, after stage 3; nothing happens if that is done."""
    if (folder / "cut.pt").exists():
        return
    check_previous("cut", folder, seed, EMBEDDED)
    choice = cut(folder, EMBEDDED, seed)
    typer.echo(f"layers {choice.layers} taken out; the lookup begins at layer {choice.begins} of {choice.depth}")


@app.command()
def tune(folder: Folder, seed: Seed = 0, processes: Processes = 1, stop_at: StopAt = None) -> None:
    """Stage 5: tune all layers, after stage 4."""
    launch("tune", folder, seed, EMBEDDED, processes, stop_at)


@app.command(name="all")
def everything(folder: Folder, seed: Seed = 0, processes: Processes = 1) -> None:
    """Run all stages in order; finished stages are skipped."""
    vision(folder, seed)
    language(folder, seed)
    align(folder, seed, processes)
    take_out(folder, seed)
    tune(folder, seed, processes)


@app.command()
def layers(folder: Folder, target: Annotated[Path, typer.Option(help="The JSON file.")], seed: Seed = 0) -> None:
    """Measure where the latest checkpoint looks, and its held-out metrics without each layer; nothing is pruned."""
    stage, learner = latest(folder, EMBEDDED, seed)
    target.write_text(json.dumps({"stage": stage, **measure_layers(learner, EMBEDDED)}, indent=2) + "\n")
    typer.echo(f"wrote {target}, of the stage {stage}")


@app.command(name="export")
def write(folder: Folder, target: Annotated[Path, typer.Option(help="The model directory to write.")]) -> None:
    """Write the model directory from the latest checkpoint."""
    checkpoint = latest_checkpoint(folder)
    step = export(checkpoint, EMBEDDED.size, target)
    typer.echo(f"wrote {target} from {checkpoint}, step {step}")


@app.command()
def exam(
    model: Annotated[Path, typer.Option(help="The model directory.")],
    target: Annotated[Path, typer.Option(help="The JSON file.")],
    n: Annotated[int, typer.Option(min=1, help="Number of questions per task.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 0,
) -> None:
    """Ask an exported model held-out questions, unpruned."""
    from training.exam import examine

    target.write_text(json.dumps({"n": n, "seed": seed, "tasks": examine(model, n, seed)}, indent=2) + "\n")


@app.command()
def curves(folder: Folder, target: Annotated[Path, typer.Option(help="The picture.")] = Path("curves.png")) -> None:
    """Plot the logs of a run."""
    from training.curves import draw_curves

    draw_curves(folder, target)
    typer.echo(f"wrote {target}")


if __name__ == "__main__":
    app()
