"""Plots the logs of a run: held-out metrics over steps, one panel per stage."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import typer

from training.world.tasks import TASKS

STAGES = {
    "vision": ("colour", "shape", "digit", "left", "middle", "content"),
    "language": ("places", "first_places", "early_places", "answers"),
    "align": (),
    "tune": (),
}
"""The stages in order, and the held-out metrics to plot; an empty tuple for all accuracies."""


def draw_curves(folder: Path, target: Path) -> None:
    """Plot the `<stage>.jsonl` files of a directory.

    Raises:
        typer.BadParameter: If there is no log.
    """
    logs = {stage: folder / f"{stage}.jsonl" for stage in STAGES if (folder / f"{stage}.jsonl").exists()}
    if not logs:
        raise typer.BadParameter(f"there is no log in {folder}; train first")
    figure, panels = plt.subplots(1, len(logs), figsize=(4.2 * len(logs), 3.6), sharey=True, squeeze=False)
    for panel, (stage, path) in zip(panels[0], logs.items(), strict=True):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        held_out = {
            key.removeprefix("held_out_") for record in records for key in record if key.startswith("held_out_")
        }
        for name in STAGES[stage] or sorted(key for key in held_out if key in TASKS):
            points = [(r["step"], r[f"held_out_{name}"]) for r in records if f"held_out_{name}" in r]
            panel.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        panel.set(title=stage, xlabel="step", ylim=(0, 1))
        panel.legend(fontsize=7, loc="lower right")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("held out, teacher-forced")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)
