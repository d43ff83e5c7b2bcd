"""Plots measured against ideal ratios over whatever was varied: tokens, batch size, depth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from feathervlm.bench.rows import noise
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.utils.plotting import axes, save, style

AXES = {"tokens": "visual tokens", "batch": "batch size", "layers": "decoder layers"}
PARTS = {"prefill": "prefill", "first_token": "time to first token"}
COLORS = ("#1d4ed8", "#c2410c", "#0f766e", "#7e22ce", "#a16207", "#be123c", "#334155", "#15803d")


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the figure of some rows to a file."""
    with style():
        save(figure(rows), path)


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Return a figure with a row of plots for each ratio and a column for each axis that was varied.

    Measured ratios have error bars at their quartiles, ideal ratios are dashed lines, and the noise of the unpruned
    model is a grey band.
    """
    varied = [axis for axis in AXES if len({row[axis] for row in rows}) > 1] or ["tokens"]
    result, plots = axes(len(varied), rows=len(PARTS), height=3.2 * len(PARTS), width=4.8)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != UNPRUNED))
    for number, part in enumerate(PARTS):
        for column, axis in enumerate(varied):
            _draw(plots[number * len(varied) + column], line(rows, axis), axis, part, methods)
    handles, labels = plots[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="#475569", linestyle="--"))
    result.legend(handles, [*labels, "ideal by FLOPs"], loc="outside lower center", ncols=2 * len(varied))
    return result


def line(rows: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """Return the rows that differ along one axis only, in its order.

    Of the other axes' settings, the one with the most values is used, and the lowest of several.
    """
    others = [other for other in AXES if other != axis]

    def rows_of(setting: tuple[int, ...]) -> list[dict[str, Any]]:
        return [row for row in rows if tuple(row[other] for other in others) == setting]

    settings = sorted({tuple(row[other] for other in others) for row in rows})
    longest = max(map(rows_of, settings), key=lambda line: len({row[axis] for row in line}))
    return sorted(longest, key=lambda row: row[axis])


def _draw(plot: Axes, rows: Sequence[dict[str, Any]], axis: str, part: str, methods: Sequence[str]) -> None:
    plain = [row for row in rows if row["method"] == UNPRUNED]
    x = [row[axis] for row in plain]
    plot.axhline(1.0, color="#475569", linewidth=1.0)
    if len(x) > 1:
        margins = [noise(row, part) for row in plain]
        low, high = [1 - margin for margin in margins], [1 + margin for margin in margins]
        plot.fill_between(x, low, high, color="#94a3b8", alpha=0.25, linewidth=0, label="noise of the unpruned model")
    for number, method in enumerate(methods):
        own, color = [row for row in rows if row["method"] == method], COLORS[number % len(COLORS)]
        ratios, at = [row["ratio"][part] for row in own], [row[axis] for row in own]
        medians = [ratio["median"] for ratio in ratios]
        errors = [
            [ratio["median"] - ratio["low"] for ratio in ratios],
            [ratio["high"] - ratio["median"] for ratio in ratios],
        ]
        plot.errorbar(at, medians, yerr=errors, color=color, marker="o", markersize=3.5, capsize=2, label=method)
        plot.plot(at, [row["ideal"][part] for row in own], color=color, linestyle="--", marker="_")
    plot.set_title(", ".join(f"{AXES[name]} {rows[0][name]}" for name in AXES if name != axis))
    plot.set_xlabel(AXES[axis])
    plot.set_ylabel(f"{PARTS[part]}, ratio to unpruned")
    plot.set_ylim(bottom=0)
    if len(x) > 1:
        plot.set_xscale("log", base=2)
        plot.set_xticks(x, [str(value) for value in x])
        plot.minorticks_off()
