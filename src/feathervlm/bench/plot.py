"""Measured against ideal, over whatever was varied: tokens, batch, depth. Knows rows and matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from feathervlm.bench.rows import UNPRUNED, noise
from feathervlm.utils.plotting import axes, save, style

AXES = {"tokens": "visual tokens", "batch": "batch size", "layers": "decoder layers"}
PARTS = {"prefill": "prefill", "first_token": "time to first token"}
COLOURS = ("#1d4ed8", "#c2410c", "#0f766e", "#7e22ce", "#a16207", "#be123c", "#334155", "#15803d")


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the figure: a row of plots for each ratio, a column for each thing that was varied."""
    with style():
        save(figure(rows), path)


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """The figure; what was measured with its quartiles, dashed the ideal, grey the noise of the unpruned model."""
    varied = [axis for axis in AXES if len({row[axis] for row in rows}) > 1] or ["tokens"]
    drawn, plots = axes(len(varied), rows=len(PARTS), height=3.2 * len(PARTS), width=4.8)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != UNPRUNED))
    for number, part in enumerate(PARTS):
        for place, axis in enumerate(varied):
            plot = plots[number * len(varied) + place]
            _draw(plot, line(rows, axis), axis, part, methods)
    handles, labels = plots[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="#475569", linestyle="--"))
    drawn.legend(handles, [*labels, "ideal by FLOPs"], loc="outside lower center", ncols=2 * len(varied))
    return drawn


def line(rows: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """The rows that differ along one axis only: of the other settings those with the most values, then the lowest."""
    others = [other for other in AXES if other != axis]

    def of(setting: tuple[int, ...]) -> list[dict[str, Any]]:
        return [row for row in rows if tuple(row[other] for other in others) == setting]

    settings = sorted({tuple(row[other] for other in others) for row in rows})
    return sorted(max(map(of, settings), key=lambda found: len({row[axis] for row in found})), key=lambda r: r[axis])


def _draw(plot: Axes, rows: Sequence[dict[str, Any]], axis: str, part: str, methods: Sequence[str]) -> None:
    plain = [row for row in rows if row["method"] == UNPRUNED]
    x = [row[axis] for row in plain]
    wobble = [noise(row, part) for row in plain]
    plot.axhline(1.0, color="#475569", linewidth=1.0)
    if len(x) > 1:
        low, high = [1 - one for one in wobble], [1 + one for one in wobble]
        plot.fill_between(x, low, high, color="#94a3b8", alpha=0.25, linewidth=0, label="noise of the unpruned model")
    for number, method in enumerate(methods):
        own, colour = [row for row in rows if row["method"] == method], COLOURS[number % len(COLOURS)]
        found, at = [row["ratio"][part] for row in own], [row[axis] for row in own]
        middle = [one["median"] for one in found]
        reach = [[m - one["low"] for m, one in zip(middle, found, strict=True)],
                 [one["high"] - m for m, one in zip(middle, found, strict=True)]]  # fmt: skip
        plot.errorbar(at, middle, yerr=reach, color=colour, marker="o", markersize=3.5, capsize=2, label=method)
        best = [row["ideal"][part] for row in own]
        plot.plot(
            at,
            best,
            color=colour,
            linestyle="--",
            marker="_",
        )
    other = ", ".join(f"{AXES[name]} {rows[0][name]}" for name in AXES if name != axis)
    plot.set_title(other)
    plot.set_xlabel(AXES[axis])
    plot.set_ylabel(f"{PARTS[part]}, ratio to unpruned")
    plot.set_ylim(bottom=0)
    if len(x) > 1:
        plot.set_xscale("log", base=2)
        plot.set_xticks(x, [str(value) for value in x])
        plot.minorticks_off()
