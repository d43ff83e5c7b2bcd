"""Names, colours and drawn intervals that the figures of all experiments share."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from feathervlm.evaluation.statistics import Estimate
from feathervlm.evaluation.tasks.base import Kind

KINDS: dict[Kind, tuple[str, str]] = {"localization": ("localization", "#c2410c"), "other": ("other tasks", "#1d4ed8")}
"""Title and colour of each kind of task."""
CRITERIA = {True: ("RoPE", "#b91c1c"), False: ("RoPE-free", "#0f766e")}
"""Title and colour of scores with and without rotary embeddings."""


def label_positions(values: Sequence[float], gap: float) -> list[float]:
    """Return the values, moved apart so that no two are closer than `gap`."""
    positions = [0.0] * len(values)
    lowest = -float("inf")
    for number in sorted(range(len(values)), key=lambda number: values[number]):
        positions[number] = lowest = max(values[number], lowest + gap)
    return positions


def band(plot: Axes, x: Sequence[float], y: Sequence[Estimate], colour: str, label: str, **options: Any) -> None:
    """Draw a line through estimates, with their 95 % intervals."""
    plot.plot(x, [one.value for one in y], color=colour, marker="o", markersize=3.5, label=label or None, **options)
    if len(x) > 1:
        plot.fill_between(x, [one.low for one in y], [one.high for one in y], color=colour, alpha=0.15, linewidth=0)
    else:
        plot.vlines(x, [one.low for one in y], [one.high for one in y], color=colour, linewidth=1)
