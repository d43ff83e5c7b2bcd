"""The parts of the page as HTML: answers, pictures, numbers, warnings, progress. Every value is escaped."""

from typing import Any

from feathervlm.app.compare import Column, Comparison, Step
from feathervlm.app.drawing import data_uri, heat_map, kept_patches
from feathervlm.app.sweep import BUDGETS, Point, Sweep
from feathervlm.utils import templates

TRUE, PREDICTED = "#00c853", "#ff1744"
"""Colours of the true and of the predicted box."""
LEVELS = {"alarm": "Alarm", "warning": "Warning", "note": "Note", "good": "All well"}
QUIET = "Nothing about the places of the kept tokens stands out in this picture."


def answer(column: Column) -> str:
    """Return the head of a column: the method and its answer so far."""
    name, _, parameters = column.name.partition(":")
    return _render("answer", column=column, name=name, parameters=parameters)


def picture(comparison: Comparison, column: Column, layer: int) -> str:
    """Return the picture of a column as a layer sees it, and the score maps before that layer."""
    if column.error or not (column.text or column.tokens):
        return ""
    layer = min(layer, max(comparison.depth - 1, 0))
    boxes = {PREDICTED: column.box, TRUE: comparison.truth.box if comparison.truth else None}
    drawn = kept_patches(comparison.picture, column.views, layer, {c: box for c, box in boxes.items() if box})
    maps = {
        "with RoPE" if rope else "without RoPE": data_uri(heat_map(comparison.picture, of_layer[layer]))
        for rope, of_layer in sorted(column.maps.items(), reverse=True)
        if layer in of_layer
    }
    tokens = column.per_layer[layer] if column.per_layer else comparison.total
    return _render(
        "picture", column=column, layer=layer, tokens=tokens, total=comparison.total, source=data_uri(drawn),
        maps=maps, truth=comparison.truth is not None and comparison.truth.box is not None,
    )  # fmt: skip


def facts(comparison: Comparison, column: Column, layer: int) -> str:
    """Return the numbers of a column beside those of the unpruned model, and what there is to know."""
    if column.error or not column.tokens:
        return ""
    unpruned = comparison.columns[0]
    per_layer = column.per_layer or [comparison.total] * comparison.depth
    gain = column.first_token / unpruned.first_token if column.first_token and unpruned.first_token else None
    return _render(
        "facts", column=column, unpruned=unpruned, per_layer=per_layer, total=comparison.total, layer=layer, gain=gain,
        average=sum(per_layer) / len(per_layer) if per_layer else 0.0, steps=spans(per_layer),
        levels=LEVELS, quiet=QUIET,
    )  # fmt: skip


def spans(per_layer: list[int]) -> str:
    """Return the tokens of every layer in words.

    >>> spans([9, 9, 4, 2])
    '9 in layers 0 to 1, 4 in layer 2, 2 in layer 3'
    """
    starts = [at for at, tokens in enumerate(per_layer) if not at or tokens != per_layer[at - 1]]
    parts = []
    for start, end in zip(starts, [*starts[1:], len(per_layer)], strict=True):
        where = f"layer {start}" if end - start == 1 else f"layers {start} to {end - 1}"
        parts.append(f"{per_layer[start]} in {where}")
    return ", ".join(parts)


def progress(step: Step | None = None, text: str = "", kind: str = "quiet") -> str:
    """Return the line that says what happens.

    Args:
        step: The step of a run.
        text: A sentence in place of it.
        kind: "running", "waiting", "error" or "quiet".
    """
    return _render("progress", step=step, text=text, kind=kind)


def sweep(result: Sweep) -> str:
    """Return a small picture for every budget, and where the answer turns."""
    if result.unpruned is None:
        return ""
    return _render(
        "sweep", sweep=result, parameter=result.method.budget_parameter,
        drawn=[(point, _small(result, point), point.text == result.unpruned) for point in result.points],
        pending=len(BUDGETS) - len(result.points),
    )  # fmt: skip


def code(python: str, commands: str) -> str:
    """Return the lines that repeat what is on the screen."""
    return _render("code", python=python, commands=commands)


def _small(result: Sweep, point: Point) -> str:
    if point.error:
        return ""
    if point not in result.drawn:
        boxes = {PREDICTED: point.box} if point.box else {}
        result.drawn[point] = data_uri(kept_patches(result.stored.picture, point.views[:1], -1, boxes))
    return result.drawn[point]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def _seconds(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _render(template: str, /, **values: Any) -> str:
    filters = {"percent": _percent, "seconds": _seconds}
    return templates.render("feathervlm.app", f"{template}.html.j2", filters, **values)
