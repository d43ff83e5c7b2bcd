"""The figure style that study, diagnosis and bench share. Matplotlib is used without its global state.

Imports matplotlib, so only modules that draw may import this one.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from feathervlm.core.errors import PruningError
from feathervlm.utils import picture_formats
from feathervlm.utils.files import MARK
from feathervlm.utils.text import printable

STYLE: Any = {
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


def style(**changes: Any) -> AbstractContextManager[None]:
    """Return a context in which figures are drawn and saved in the shared style.

    Args:
        changes: Values of matplotlib's `rcParams` that differ, with `_` for the dot, such as `font_size=10`.
    """
    changed: Any = {name.replace("_", ".", 1): value for name, value in changes.items()}
    return mpl.rc_context({**STYLE, **changed})


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
    """Return a figure and its plots, row by row.

    Args:
        count: Number of plots in a row.
        x: Label of all horizontal axes.
        y: Label of the first vertical axis.
        titles: Titles of the first plots.
        width: Width of one plot in inches.
        height: Height of the figure in inches.
        rows: Number of rows.
    """
    figure = Figure((width * count, height), layout="constrained")
    plots = [figure.add_subplot(rows, count, number + 1) for number in range(rows * count)]
    for plot, title in zip(plots, titles, strict=False):
        plot.set_title(title)
    for plot in plots:
        plot.set_xlabel(x)
    plots[0].set_ylabel(y)
    return figure, plots


def bare(plot: Axes) -> Axes:
    """Remove ticks and grid lines, as a plot that shows an image needs it, and return the plot."""
    plot.set_xticks([])
    plot.set_yticks([])
    plot.grid(False)
    return plot


FORMATS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps")
"""Suffixes of figures."""


def check_suffix(path: Path, option: str) -> None:
    """Refuse a path whose suffix names no format of figures.

    Raises:
        PruningError: There is no such format.
    """
    if path.suffix.lower() not in FORMATS:
        raise PruningError(
            f"{option} {printable(path)} does not end like a figure; give a name with one of {', '.join(FORMATS)}."
        )


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the suffix names; equal figures give equal files, with the mark of results."""
    kind = path.suffix.lower()
    if kind in (".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
        figure.savefig(path, pil_kwargs=picture_formats.marked(picture_formats.kind_of(path)))
    elif kind in (".svg", ".pdf"):
        date = "Date" if kind == ".svg" else "CreationDate"
        figure.savefig(path, metadata={"Creator": MARK, date: None})
    else:
        figure.savefig(path, metadata={"Creator" if kind in (".eps", ".ps") else "Software": MARK})
