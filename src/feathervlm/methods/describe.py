"""What there is to know about a method without a model, read off its class and its schedule.

Knows the algebra, and neither models nor the terminal.
"""

import inspect
from collections.abc import Iterable
from dataclasses import fields, replace
from fractions import Fraction
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of
from feathervlm.core.schedule import Layer, Schedule, layer_index
from feathervlm.core.scoring_pass import Survivors
from feathervlm.core.signals import (
    Attention,
    EncoderAttention,
    EncoderKeys,
    Features,
    IsText,
    Keys,
    LayerStates,
    RaterAttention,
    Representatives,
    RotaryTable,
    Signal,
    Text,
    Values,
)
from feathervlm.core.spec import write_value
from feathervlm.methods import Method

DEPTH = 32
ENCODER_DEPTH = 24
GRID = (1, 24, 24)


def describe(method: Method) -> dict[str, Any]:
    """Everything about a method as plain values, ready for JSON.

    Counts are those of one image of 24 x 24 tokens on a model of 32 layers.
    """
    schedule = method.schedule()
    signals = list(schedule.signals())
    return {
        "name": method.name,
        "summary": method.summary(),
        "paper": method.paper,
        "doc": inspect.cleandoc(method.__doc__ or ""),
        "parameters": _parameters(method),
        "encoder": _encoder(schedule),
        "stages": _stages(schedule),
        "needs": list(dict.fromkeys(_need(stage.signals()) for stage in schedule)),
        "needs_text": any(isinstance(signal, Attention | IsText) for signal in signals),
        "count_known": all(stage["exact"] for stage in _stages(schedule)),
        "examples": _examples(method),
    }


def written_layer(layer: Layer) -> str:
    """A layer as a reader wants it: a fraction of the depth as 1/4, an absolute one as its number."""
    if isinstance(layer, int):
        return str(layer)
    fraction = Fraction(layer).limit_denominator(64)
    return str(fraction) if abs(float(fraction) - layer) < 1e-6 else f"{layer:g}"


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


def _need(signals: Iterable[Signal]) -> str:
    return (
        " and ".join(dict.fromkeys(_signal(s) for s in signals if not isinstance(s, IsText))) or "nothing but the grid"
    )


def _signal(signal: Signal) -> str:
    if isinstance(signal, Attention):
        layer = "before the cut" if signal.layer == "K-1" else "after the cut"
        keys = "visual tokens" if signal.over == "visual" else "all tokens"
        rope = "with" if signal.rope else "without"
        rated = isinstance(signal, RaterAttention)
        asking = "the words that the image is about" if rated else "the last prompt token"
        return f"attention of {asking} in the layer {layer}, {rope} RoPE, softmax over {keys}"
    if isinstance(signal, Keys):
        layer = "before the cut" if signal.layer == "K-1" else "after the cut"
        return f"keys of the layer {layer}, {'with' if signal.rope else 'without'} RoPE"
    if isinstance(signal, Values):
        return "values of the layer before the cut"
    if isinstance(signal, RotaryTable):
        return f"the {'cosines' if signal.of == 'cos' else 'sines'} by which positions are rotated"
    if isinstance(signal, LayerStates):
        where = "that enter" if signal.point == "entry" else "behind the attention of"
        return f"hidden states {where} the layer before the cut"
    if isinstance(signal, IsText):
        return "which tokens are text"
    if isinstance(signal, Text):
        if isinstance(signal.of, Keys):
            return "keys of text"
        if isinstance(signal.of, Values):
            return "values of text"
        return "embeddings of text" if signal.of.source == "projected" else "hidden states of text"
    if isinstance(signal, Features):
        if signal.source == "vision":
            return "patch features of the vision encoder, before the projector"
        if signal.source == "hidden":
            return "hidden states that enter the layer behind the cut"
        return "projected features, as they enter the language model"
    if isinstance(signal, EncoderAttention):
        return f"attention inside the vision encoder, layer {written_layer(signal.layer)}"
    if isinstance(signal, EncoderKeys):
        return f"keys inside the vision encoder, layer {written_layer(signal.layer)}"
    if isinstance(signal, Representatives):
        return "which patches the vision encoder has merged"
    assert isinstance(signal, Survivors)
    inner = dict.fromkeys(_need(stage.signals()) for stage in signal.schedule)
    return f"a scoring pass of its own, which needs {'; '.join(inner)}"


def _parameters(method: Method) -> list[dict[str, str]]:
    hints = get_type_hints(type(method))
    return [
        {
            "name": field.name,
            "type": _written_type(hints[field.name]),
            "default": _written(field.default),
        }
        for field in fields(method)
    ]


def _written(default: Any) -> str:
    if default is None:
        return "none"
    return f"({default})" if isinstance(default, Method) else write_value(default)


def _written_type(hint: Any) -> str:
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return " | ".join(map(str, inner))
    if get_origin(hint) is tuple:
        return f"list of {_written_type(inner[0])}"
    if inner:
        return " | ".join(map(_written_type, inner))
    return {Method: "method", NoneType: "none"}.get(hint) or str(getattr(hint, "__name__", hint))


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
    value = getattr(method, method.free, None) if method.free else None
    if isinstance(value, float) and value <= 1:
        examples.append(str(method.with_free(value / 2)))
    return list(dict.fromkeys(examples))
