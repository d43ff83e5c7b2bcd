"""What there is to know about a method without a model, read off its class and its schedule.

Knows the algebra, and neither models nor the terminal.
"""

import inspect
from dataclasses import MISSING, fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of
from feathervlm.core.schedule import Schedule, layer_index
from feathervlm.core.signals import describe_signals, written_layer
from feathervlm.methods.base import Method, default_of, written

DEPTH = 32
ENCODER_DEPTH = 24
GRID = (1, 24, 24)


def describe(method: Method) -> dict[str, Any]:
    """Everything about a method as plain values, ready for JSON.

    Counts are those of one image of 24 x 24 tokens on a model of 32 layers.
    """
    schedule = method.schedule()
    return {
        "name": method.name,
        "summary": method.summary(),
        "paper": method.paper,
        "doc": inspect.cleandoc(method.__doc__ or ""),
        "parameters": _parameters(method),
        "encoder": _encoder(schedule),
        "stages": _stages(schedule),
        "needs": list(dict.fromkeys(describe_signals(stage.signals()) for stage in schedule)),
        "needs_text": any(signal.needs_text for signal in schedule.signals()),
        "count_known": all(stage["exact"] for stage in _stages(schedule)),
        "examples": _examples(method),
    }


def _stages(schedule: Schedule) -> list[dict[str, Any]]:
    image, exact, stages = ImageTokens(picture_of(GRID), GRID[1] * GRID[2]), True, []
    for stage, layer in zip(schedule, schedule.at_layers(DEPTH), strict=True):
        size = stage.select.size(image)
        exact = exact and size is not None
        tokens = float(stage.select.expected(image) if size is None else size)
        stages.append(
            {
                "at": written_layer(stage.at),
                "layer_of_32": layer,
                "tokens_of_576": round(tokens),
                "exact": exact,
                "merged": stage.merge is not None,
                "positions": stage.positions,
                "cache": stage.cache,
            }
        )
        image = ImageTokens(picture_of(GRID), tokens)
    return stages


def _encoder(schedule: Schedule) -> list[int] | None:
    """Patches of 576 that enter each layer of a vision encoder of 24; None if it is left alone."""
    if schedule.encoder is None:
        return None
    entering, left = [], GRID[1] * GRID[2]
    plan = schedule.encoder.plan(ENCODER_DEPTH, left)
    for layer in range(ENCODER_DEPTH):
        before = plan.get(layer, left) if schedule.encoder.compares == "states" else left
        entering.append(before)
        left = plan.get(layer, left)
    return entering


def _parameters(method: Method) -> list[dict[str, str | None]]:
    hints = get_type_hints(type(method))
    return [
        {
            "name": field.name,
            "type": _written_type(hints[field.name]),
            "default": _written_default(default_of(field)),
        }
        for field in fields(method)
    ]


def _written_type(hint: Any) -> str:
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return " | ".join(map(str, inner))
    if get_origin(hint) is tuple:
        return f"list of {_written_type(inner[0])}"
    if inner:
        return " | ".join(map(_written_type, inner))
    return {Method: "method", NoneType: "none"}.get(hint) or str(getattr(hint, "__name__", hint))


def _written_default(default: Any) -> str | None:
    """Write a default as in a spec; None if the parameter has none."""
    if default is MISSING:
        return None
    return "none" if default is None else written(default)


def _examples(method: Method) -> list[str]:
    """Specs that are valid by construction: the default, absolute layers of a 32-layer model, half the tokens."""
    examples = [method.name]
    absolute: dict[str, Any] = {}
    for name in ("layer", "layers"):
        layers = getattr(method, name, None)
        if isinstance(layers, tuple):
            absolute[name] = tuple(layer_index(layer, DEPTH) for layer in layers)
        elif isinstance(layers, int | float):
            absolute[name] = layer_index(layers, DEPTH)
    if absolute:
        examples.append(str(replace(method, **absolute)))
    value = getattr(method, method.budget_parameter, None) if method.budget_parameter else None
    if isinstance(value, float) and value <= 1:
        examples.append(str(method.with_budget(value / 2)))
    return list(dict.fromkeys(examples))
