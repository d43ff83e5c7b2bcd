"""The paper's printed numbers, and how a run compares with them.

A row of the paper belongs to a run's method if both are the same at every parameter, with layers of a model of 32.
Knows results; what a run has to be like to be comparable is said, not enforced.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import layer_index
from feathervlm.evaluation.results import Row
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import Method, get

DEPTH = 32
"""Decoder layers of the paper's model."""
MODEL = "prism-siglip-controlled+7b"
"""Whose numbers most are: those compared with."""


@dataclass(frozen=True)
class Printed:
    """A row of the paper.

    Attributes:
        method: the same as a spec, `none` for the unpruned model.
        label: how the paper calls it.
        source: the table.
        settings: as the paper gives them; it says so where they are inferred.
        model: which answered.
        flops_reduction: in percent, as printed; None if it is not.
        scores: in percent, by task, and the averages that are printed.
    """

    method: str
    label: str
    source: str
    settings: str
    model: str
    flops_reduction: int | None
    scores: dict[str, float]


@cache
def printed() -> tuple[Printed, ...]:
    """All rows."""
    return tuple(Printed(**row) for row in _document()["rows"])


@cache
def _document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
    return found


def tolerance() -> float:
    """Points by which a rerun may be off: the authors' own was, by up to so many."""
    return float(_document()["tolerance"])


def settled(spec: str) -> Method | None:
    """A method with the layers it would have in the paper's model; None for the unpruned model."""
    return None if spec in ("none", UNPRUNED) else _settled(get(spec))


def _settled(method: Method) -> Method:
    changes: dict[str, Any] = {}
    for field in fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Method):
            changes[field.name] = _settled(value)
        elif field.name == "layer":
            changes[field.name] = layer_index(value, DEPTH)
        elif field.name == "layers":
            changes[field.name] = tuple(layer_index(one, DEPTH) for one in value)
    return replace(method, **changes)


def compare(rows: Sequence[Row], about: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's numbers beside those of a run.

    Args:
        rows: of the run.
        about: as `running` writes it.

    Returns:
        Ready for JSON: `differs`, what sets the run apart from the paper's; and `rows`, each a task of the run under a
        method of the paper, in percent, with the difference in points and whether it is within the tolerance.
    """
    found = []
    for one in printed():
        for row in rows:
            if one.model == MODEL and row.task in one.scores and _same(one.method, row.method):
                here, there = 100 * row.score.value, one.scores[row.task]
                interval = row.score.interval
                found.append(
                    {
                        "method": row.method,
                        "label": one.label,
                        "source": one.source,
                        "task": row.task,
                        "paper": there,
                        "here": round(here, 2),
                        "low": round(100 * interval.low, 2),
                        "high": round(100 * interval.high, 2),
                        "difference": round(here - there, 2),
                        "within": abs(here - there) <= tolerance(),
                    }
                )
    return {"model": MODEL, "tolerance": tolerance(), "differs": differences(about), "rows": found}


def _same(spec: str, other: str) -> bool:
    try:
        return settled(spec) == settled(other)
    except PruningError:  # a layer that a model of 32 does not have
        return False


def differences(about: Mapping[str, Any]) -> list[str]:
    """What of a run is known to be another configuration than the paper's."""
    model, found = about["model"], []
    if (model["model_type"], model["depth"]) != ("llava", DEPTH):
        found.append(f"the model is a {model['model_type']} of {model['depth']} layers")
    if about["protocol"] != "paper":
        found.append(f"the protocol is {about['protocol']}")
    for name, task in about["tasks"].items():
        if task["paper"] is not None and task["questions"] != task["paper"]:
            found.append(f"{name} has {task['questions']} questions instead of {task['paper']}")
    return found
