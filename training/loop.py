"""The training loop of all stages: optimizers, learning-rate schedule, progress, log and checkpoints.

A stage passes a model and a function from a step number to a loss and metrics. A batch depends on the step number
alone, so that an interrupted run is resumed exactly. A checkpoint is written every few minutes and after every
validation.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from training.machine import best_device, helpers
from training.muon import Muon

SAVE_AFTER, REPORT_AFTER = 180.0, 60.0
"""Seconds after which a checkpoint is written, and after which a line is printed if there is no terminal."""

Figures = dict[str, float]
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Plan:
    """How a stage is optimized.

    Attributes:
        steps: Number of optimizer steps.
        matrix_rate: Learning rate of Muon, for the matrices inside layers.
        other_rate: Learning rate of AdamW, for all other parameters.
        warm_up: Steps of linear warm-up.
        flat: Share of the steps before the linear decay.
        floor: Share of the learning rate at the end of the decay.
        weight_decay: Decoupled weight decay of both optimizers.
    """

    steps: int
    matrix_rate: float
    other_rate: float
    warm_up: int = 50
    flat: float = 0.4
    floor: float = 0.03
    weight_decay: float = 0.02

    def rate(self, step: int) -> float:
        """Return the share of the full learning rate at a step."""
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
    """Train the parameters of `module` that require gradients, and write `<name>.pt` and `<name>.jsonl` to `folder`.

    Args:
        name: Name of the stage.
        module: Module that is trained and saved.
        plan: Steps and learning rates.
        make: Returns the batch of a step; may be called in other processes, ahead of time.
        compute: Returns the loss and the metrics of a step and its batch.
        folder: Directory of checkpoints and log; a checkpoint in it is resumed.
        validate: Returns metrics on held-out data, which are logged.
        every: Steps between two validations.
        reduce: Averages gradients over processes, in place.
        main: Whether this process writes files and shows progress.
        stop_at: Step to stop before, so that the stage can be resumed.
        run: Identifies the run; a checkpoint of another run is refused.

    Raises:
        typer.BadParameter: If the checkpoint belongs to another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = make_optimizers(module, plan)
    start, before = resume(folder / f"{name}.pt", module, optimizers, run)
    begun = saved = time.time()
    averages = Averages()
    log = folder / f"{name}.jsonl"
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    last = plan.steps if stop_at is None else min(plan.steps, stop_at)
    with Reporter(name, start, last, shown=main) as reporter:
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
            reporter.advance(loss.item())
            if not main:
                continue
            done, logged = step + 1 == last, (step + 1) % every == 0
            seconds = before + time.time() - begun
            if done or logged:
                record: dict[str, Any] = {"step": step + 1, "seconds": round(seconds, 1), **averages.take()}
                if validate:
                    record |= {f"held_out_{key}": round(value, 4) for key, value in validate().items()}
                with log.open("a") as file:
                    file.write(json.dumps(record, allow_nan=False) + "\n")
            if done or logged or time.time() - saved > SAVE_AFTER:
                state = {"module": module.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
                save(folder / f"{name}.pt", {**state, "step": step + 1, "seconds": seconds, "run": run})
                saved = time.time()


class Reporter:
    """Shows the progress of a stage: a bar on a terminal, else a line every minute."""

    def __init__(self, name: str, start: int, last: int, *, shown: bool) -> None:
        self.name, self.start, self.last, self.shown = name, start, last, shown
        self.done = start
        self.begun = self.reported = time.time()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not (shown and sys.stderr.isatty()),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Self:
        self.bar.start()
        self.task = self.bar.add_task(self.name, total=self.last, completed=self.start)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, loss: float) -> None:
        """Count one more step."""
        self.done += 1
        self.bar.update(self.task, advance=1, description=f"{self.name} loss {loss:.3f}")
        now = time.time()
        if self.shown and self.bar.disable and (now - self.reported > REPORT_AFTER or self.done == self.last):
            self.reported = now
            each = (now - self.begun) / (self.done - self.start)
            left = timedelta(seconds=round(each * (self.last - self.done)))
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            typer.echo(f"{when} {self.name} {self.done}/{self.last} loss {loss:.3f}, {each:.2f} s/step, {left} left")


class Steps(Dataset[Batch]):
    """The batches of a stage by step number, as a torch data set."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def ahead(make: Callable[[int], Batch], steps: Iterable[int], processes: int) -> Iterable[Batch]:
    """Return the batches of some steps in order, made ahead of time by processes, or on demand if there are none."""
    return DataLoader(Steps(make), batch_size=None, sampler=steps, num_workers=processes)


class Averages:
    """Means of metrics over the steps that measured them."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, figures: Figures) -> None:
        """Add the metrics of one step."""
        for key, value in figures.items():
            self.values.setdefault(key, []).append(value)

    def take(self) -> Figures:
        """Return the means and reset them."""
        means = {key: round(sum(values) / len(values), 4) for key, values in self.values.items()}
        self.values = {}
        return means


def make_optimizers(module: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return AdamW for embeddings, heads, norms and biases, and Muon for the matrices inside layers."""
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
    """Load a checkpoint if there is one; return the next step and the seconds spent so far.

    Raises:
        typer.BadParameter: If the checkpoint belongs to another run.
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
