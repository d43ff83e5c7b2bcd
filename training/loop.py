"""The training loop that all stages share: optimizers, learning-rate schedule, progress, log and checkpoints.

A stage gives a model, the parameters to train and a function from a step number to a loss and figures. Batches follow
from the step number alone, so that a run which was interrupted goes on exactly where it stood.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from training.machine import best_device, helpers
from training.muon import Muon

Figures = dict[str, float]
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Plan:
    """How a stage is optimized.

    Attributes:
        steps: optimizer steps in all.
        matrix_rate: Muon's learning rate, for the matrices inside layers.
        other_rate: AdamW's, for everything else.
        warm_up: steps of linear warm-up.
        flat: the share of the steps at full rate, before a linear decay to `floor` of it.
    """

    steps: int
    matrix_rate: float
    other_rate: float
    warm_up: int = 50
    flat: float = 0.4
    floor: float = 0.03
    weight_decay: float = 0.02

    def rate(self, step: int) -> float:
        """The share of the full learning rate at a step."""
        after = max(0.0, step / self.steps - self.flat) / (1 - self.flat)
        return min(1.0, (step + 1) / self.warm_up) * (1 - after * (1 - self.floor))


def train(
    name: str,
    module: nn.Module,
    plan: Plan,
    make: Callable[[int], Batch],
    compute: Callable[[int, Batch], tuple[Tensor, Figures]],
    folder: Path,
    *,
    validate: Callable[[], Figures] | None = None,
    every: int = 200,
    reduce: Callable[[list[Tensor]], None] | None = None,
    main: bool = True,
    stop_at: int | None = None,
    run: str = "",
) -> None:
    """Train the parameters of `module` that require gradients; writes `<name>.pt` and `<name>.jsonl` to `folder`.

    Args:
        name: of the stage.
        module: what is trained and saved.
        plan: how.
        make: from a step number to its batch; it may run in other processes, ahead of time.
        compute: from a step number and its batch to a loss and figures to log.
        folder: for checkpoints and the log; a checkpoint found there is resumed.
        validate: figures on held-out data, logged at every checkpoint.
        every: steps between two checkpoints.
        reduce: averages gradients over processes, in place.
        main: whether this process writes files and shows progress.
        stop_at: end before this step, to be resumed later.
        run: what tells this run from others; a checkpoint of another one is refused.

    Raises:
        typer.BadParameter: the checkpoint found belongs to another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = make_optimizers(module, plan)
    start, before = resume(folder / f"{name}.pt", module, optimizers, run)
    begun = time.time()
    averages = Averages()
    log = folder / f"{name}.jsonl"
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    last = plan.steps if stop_at is None else min(plan.steps, stop_at)
    with progress(main) as bar:
        task = bar.add_task(name, total=last, completed=start)
        for step, batch in zip(range(start, last), ahead(make, range(start, last), helpers()), strict=True):
            for optimizer, base in zip(optimizers, (plan.other_rate, plan.matrix_rate), strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = base * plan.rate(step)
            loss, figures = compute(step, batch)
            loss.backward()
            if reduce:
                reduce(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            averages.add({"loss": loss.item(), "norm": float(norm), **figures})
            bar.update(task, advance=1, description=f"{name} loss {loss.item():.3f}")
            if main and ((step + 1) % every == 0 or step + 1 == last):
                seconds = before + time.time() - begun
                record: dict[str, Any] = {"step": step + 1, "seconds": round(seconds, 1), **averages.take()}
                if validate:
                    record |= {f"held_out_{key}": round(value, 4) for key, value in validate().items()}
                with log.open("a") as file:
                    file.write(json.dumps(record, allow_nan=False) + "\n")
                state = {"module": module.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
                save(folder / f"{name}.pt", {**state, "step": step + 1, "seconds": seconds, "run": run})


class Steps(Dataset[Batch]):
    """The batches of a stage by step number, as torch's loader wants them."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def ahead(make: Callable[[int], Batch], steps: Iterable[int], processes: int) -> Iterable[Batch]:
    """The batches of these steps in order, made ahead of time by so many processes, or with 0 here, when asked for."""
    return DataLoader(Steps(make), batch_size=None, sampler=steps, num_workers=processes)


class Averages:
    """Means of figures over the steps at which they were there."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, figures: Figures) -> None:
        """Take what one step measured."""
        for key, value in figures.items():
            self.values.setdefault(key, []).append(value)

    def take(self) -> Figures:
        """The means so far, which are then forgotten."""
        found = {key: round(sum(values) / len(values), 4) for key, values in self.values.items()}
        self.values = {}
        return found


def make_optimizers(module: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings, heads, norms and biases, then Muon for the matrices inside layers."""
    matrices, others = [], []
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            inside = weight.dim() == 2 and "layers." in name
            (matrices if inside else others).append(weight)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    ]
    if matrices:
        optimizers.append(Muon(matrices, plan.matrix_rate, plan.weight_decay))
    return optimizers


def resume(path: Path, module: nn.Module, optimizers: Iterable[torch.optim.Optimizer], run: str) -> tuple[int, float]:
    """Load a checkpoint if there is one: the step to go on from and the seconds spent so far.

    Raises:
        typer.BadParameter: the checkpoint belongs to another run.
    """
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location=best_device())
    if state["run"] != run:
        raise typer.BadParameter(f"{path} belongs to the run {state['run']!r}, not {run!r}; choose another --folder")
    module.load_state_dict(state["module"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def progress(shown: bool) -> Progress:
    """A bar with the steps done, the time gone and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not shown,
    )
