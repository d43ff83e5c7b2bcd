"""Runs the stages with images in one or several processes, and loads the weights of the previous stages."""

import os
import socket
from pathlib import Path
from typing import Any

import torch
import typer

from training.align import Learner, train_alignment
from training.build import build_model, layers_in, with_layers
from training.language import Language
from training.machine import best_device
from training.recipe import Recipe
from training.words import begin_with_words

NEEDS = {"align": ("vision", "language"), "cut": ("align",), "tune": ("cut",)}
"""The stages that each stage requires."""


def check_previous(stage: str, folder: Path, seed: int, recipe: Recipe) -> None:
    """Refuse to run a stage before those that it requires.

    Raises:
        typer.BadParameter: If a required stage is missing, unfinished, or belongs to another run.
    """
    for name in NEEDS[stage]:
        path = folder / f"{name}.pt"
        if not path.exists():
            raise typer.BadParameter(f"there is no {path}; run the stage `{name}` first")
        state = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
        if state["run"].partition(",")[0] != recipe.run(seed):
            raise typer.BadParameter(f"{path} belongs to the run {state['run']!r}, and this is {recipe.run(seed)!r}")
        steps = {"vision": recipe.vision, "language": recipe.language, "align": recipe.align}
        if name in steps and state["step"] < steps[name].steps:
            raise typer.BadParameter(f"{path} is at step {state['step']}; finish the stage `{name}` first")


def launch(stage: str, folder: Path, seed: int, recipe: Recipe, processes: int, stop_at: int | None) -> None:
    """Run the stage "align" or "tune" in one or several processes of one thread each; on a GPU in one.

    Raises:
        typer.BadParameter: If a required stage is missing or belongs to another run, or the images of a step cannot
            be divided evenly.
    """
    check_previous(stage, folder, seed, recipe)
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
    learner = begin(stage, folder, seed, recipe)
    train_alignment(learner, stage, folder, recipe, seed, process=process, processes=processes, stop_at=stop_at)
    if processes > 1:
        torch.distributed.destroy_process_group()


def begin(stage: str, folder: Path, seed: int, recipe: Recipe) -> Learner:
    """Return the model as it enters a stage; weights are only loaded if the stage has no checkpoint of its own."""
    if stage == "tune":
        previous = read(folder / "cut.pt")["module"]
        learner = Learner(build_model(with_layers(recipe.size, layers_in(previous)), seed)).to(best_device())
        learner.load_state_dict(previous)
        return learner
    learner = Learner(build_model(recipe.size, seed)).to(best_device())
    if (folder / f"{stage}.pt").exists():
        return learner
    model = learner.model
    trained = read(folder / "vision.pt")["module"].items()
    model.model.vision_tower.load_state_dict(
        {key.removeprefix("tower."): value for key, value in trained if key.startswith("tower.")}
    )
    language = Language(model).to(best_device())
    language.load_state_dict(read(folder / "language.pt")["module"])
    learner.answer.load_state_dict(language.answer.state_dict())
    begin_with_words(model, seed, recipe.early.bag_layer)
    return learner


def read(path: Path) -> dict[str, Any]:
    """Return a checkpoint of a previous stage."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def latest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of the latest stage with images.

    Raises:
        typer.BadParameter: If there is none.
    """
    for stage in ("tune", "cut", "align"):
        if (folder / f"{stage}.pt").exists():
            return folder / f"{stage}.pt"
    raise typer.BadParameter(f"there is no checkpoint of a stage with images in {folder}; train first")


def latest(folder: Path, recipe: Recipe, seed: int) -> tuple[str, Learner]:
    """Return the name of the latest stage with images, and its model."""
    path = latest_checkpoint(folder)
    weights = read(path)["module"]
    learner = Learner(build_model(with_layers(recipe.size, layers_in(weights)), seed))
    learner.load_state_dict(weights)
    return path.stem, learner
