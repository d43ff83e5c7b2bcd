"""How the study's figures look. Matplotlib without its global state, so that it may run anywhere."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feathervlm.evaluation.statistics import Estimate
from feathervlm.evaluation.tasks.base import Kind

KINDS: dict[Kind, tuple[str, str]] = {"localization": ("localization", "#c2410c"), "other": ("other tasks", "#1d4ed8")}
"""What each kind is called, and its colour."""
CRITERIA = {True: ("RoPE", "#b91c1c"), False: ("RoPE-free", "#0f766e")}
"""Whether a score is rotated: what that is called, and its colour."""
SETTINGS: Any = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "feathervlm",
    "savefig.dpi": 130,
}


def axes(
    count: int,
    x: str = "",
    y: str = "",
    *,
    titles: Sequence[str] = (),
    width: float = 5.2,
    height: float = 3.6,
    rows: int = 1,
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` plots side by side, in one row or several.

    Args:
        count: of plots in a row.
        x: label of all horizontal axes.
        y: label of the first vertical axis.
        titles: of the plots.
        width: of one plot, in inches.
        height: of the figure, in inches.
        rows: of plots.
    """
    figure = Figure((width * count, height), layout="constrained")
    plots = [figure.add_subplot(rows, count, number + 1) for number in range(rows * count)]
    for plot, title in zip(plots, titles, strict=False):
        plot.set_title(title)
    for plot in plots:
        plot.set_xlabel(x)
    plots[0].set_ylabel(y)
    return figure, plots


def style() -> AbstractContextManager[None]:
    """The look of everything that is drawn and saved inside."""
    return mpl.rc_context(SETTINGS)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved apart so that no two are closer than `gap`: places for labels."""
    places = [0.0] * len(values)
    lowest = -float("inf")
    for number in sorted(range(len(values)), key=lambda number: values[number]):
        places[number] = lowest = max(values[number], lowest + gap)
    return places


def band(plot: Axes, x: Sequence[float], y: Sequence[Estimate], colour: str, label: str, **look: Any) -> None:
    """A line through estimates, with their 95 % intervals."""
    plot.plot(x, [one.value for one in y], color=colour, marker="o", markersize=3.5, label=label or None, **look)
    if len(x) > 1:
        plot.fill_between(x, [one.low for one in y], [one.high for one in y], color=colour, alpha=0.15, linewidth=0)
    else:
        plot.vlines(x, [one.low for one in y], [one.high for one in y], color=colour, linewidth=1)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the name ends with; the same figure always gives the same file."""
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
