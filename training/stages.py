"""Runs stages 3 and 4 in one or several processes, and loads the weights of the previous stages."""

import os
import socket
from pathlib import Path

import torch
import typer
from transformers import LlavaForConditionalGeneration

from feathervlm import embedded
from training.align import fit_projector, train_alignment
from training.build import build_model
from training.language import Language
from training.machine import best_device
from training.recipe import Recipe
from training.words import begin_with_words

NEEDS = {"align": ("vision", "language"), "tune": ("align",)}
"""The stages that each stage requires."""


def launch(stage: str, folder: Path, seed: int, recipe: Recipe, processes: int, stop_at: int | None) -> None:
    """Run stage 3 or 4 in one or several processes of one thread each; on a GPU in one.

    Raises:
        typer.BadParameter: If a required stage is missing or belongs to another run, or the images of a step cannot
            be divided evenly.
    """
    for name in NEEDS[stage]:
        if name == "vision" and recipe.vision is None:
            continue
        if not (folder / f"{name}.pt").exists():
            raise typer.BadParameter(f"there is no {folder / name}.pt; run the stage `{name}` first")
        run = torch.load(folder / f"{name}.pt", weights_only=True, mmap=True, map_location="cpu")["run"]
        if run.partition(",")[0] != recipe.run(seed):
            raise typer.BadParameter(f"{folder / name}.pt belongs to the run {run!r}, and this is {recipe.run(seed)!r}")
    if torch.cuda.is_available():
        processes = 1
    if recipe.images % processes:
        raise typer.BadParameter(f"{recipe.images} images per step cannot be divided among {processes} processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (stage, folder, seed, recipe, processes, stop_at, port)
    if processes == 1:
        work(0, *arguments)
    else:
        torch.multiprocessing.spawn(work, arguments, nprocs=processes)


def work(
    process: int, stage: str, folder: Path, seed: int, recipe: Recipe, processes: int, stop_at: int | None, port: int
) -> None:
    """Run the work of one process."""
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.distributed.init_process_group("gloo", rank=process, world_size=processes)
    model = build_model(recipe.size, seed).to(best_device())
    fresh = load(model, folder, stage, recipe)
    if stage == "align" and fresh:
        if recipe.words:
            begin_with_words(model, seed)
        else:
            fit_projector(model)
    train_alignment(
        model,
        stage,
        folder,
        recipe,
        seed,
        process=process,
        processes=processes,
        stop_at=stop_at,
    )
    if processes > 1:
        torch.distributed.destroy_process_group()


def load(model: LlavaForConditionalGeneration, folder: Path, stage: str, recipe: Recipe) -> bool:
    """Load the weights of the previous stages; return False, without loading, if this stage has a checkpoint."""
    if (folder / f"{stage}.pt").exists():
        return False
    if stage == "tune":
        model.load_state_dict(read(folder / "align.pt"))
        return True
    if recipe.vision is None:
        tower = embedded.load()[0].model.vision_tower.state_dict()
    else:
        trained = read(folder / "vision.pt").items()
        tower = {key.removeprefix("tower."): value for key, value in trained if key.startswith("tower.")}
    model.model.vision_tower.load_state_dict(tower)
    Language(model).load_state_dict(read(folder / "language.pt"))
    return True


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in the checkpoint of a previous stage."""
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")["module"]
    return weights
