"""The printed numbers of the paper, and their comparison with a run.

A row of the paper belongs to the method of a run if both have the same parameters, with layers of a model of 32. What
sets a run apart from the paper is reported and not refused.
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
"""Number of decoder layers of the model of the paper."""
MODEL = "prism-siglip-controlled+7b"
"""Model of the rows that runs are compared with."""


@dataclass(frozen=True)
class Printed:
    """A row of the paper.

    Attributes:
        method: Method as a spec, `none` for the unpruned model.
        label: Name of the method in the paper.
        source: Table of the paper.
        settings: Settings as the paper gives them, with a note where they are inferred.
        model: Model that answered.
        flops_reduction: Printed reduction in percent; None if it is not printed.
        scores: Scores in percent by task, and the printed averages.
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
    """Return all rows."""
    return tuple(Printed(**row) for row in _document()["rows"])


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
    return document


def tolerance() -> float:
    """Return the points by which a rerun may differ, which is the largest difference of a rerun of the authors."""
    return float(_document()["tolerance"])


def resolved(spec: str) -> Method | None:
    """Return a method with the layers that it has in the model of the paper; None for the unpruned model."""
    return None if spec in ("none", UNPRUNED) else _resolved(get(spec))


def _resolved(method: Method) -> Method:
    changes: dict[str, Any] = {}
    for field in fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Method):
            changes[field.name] = _resolved(value)
        elif field.name == "layer":
            changes[field.name] = layer_index(value, DEPTH)
        elif field.name == "layers":
            changes[field.name] = tuple(layer_index(one, DEPTH) for one in value)
    return replace(method, **changes)


def compare(rows: Sequence[Row], about: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the numbers of the paper with those of a run.

    Args:
        rows: Rows of the run.
        about: Description of the run, see `run.Evaluation`.

    Returns:
        A document ready for JSON: `differs`, what sets the run apart from the paper; and `rows`, each a task of the run
        under a method of the paper, in percent, with the difference in points and whether it is within the tolerance.
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
        return resolved(spec) == resolved(other)
    except PruningError:  # a layer that a model of 32 does not have
        return False


def differences(about: Mapping[str, Any]) -> list[str]:
    """Return in which settings a run is known to differ from the paper."""
    model, found = about["model"], []
    if (model["model_type"], model["depth"]) != ("llava", DEPTH):
        found.append(f"the model is a {model['model_type']} of {model['depth']} layers")
    if about["protocol"] != "paper":
        found.append(f"the protocol is {about['protocol']}")
    for name, task in about["tasks"].items():
        if task["paper"] is not None and task["questions"] != task["paper"]:
            found.append(f"{name} has {task['questions']} questions instead of {task['paper']}")
    return found
