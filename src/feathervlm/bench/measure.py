"""One case: a model, a prompt and a batch, unpruned, with each method, and unpruned again, in turns.

The vision encoder is run apart from the decoder, as `generate` does it, and inside the pruning, so that what a method
reads there is part of its time. Knows how to run a model; derives nothing from the times.
"""

import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from feathervlm.api import prune
from feathervlm.bench.memory import kv_bytes, peak
from feathervlm.bench.timing import Clock, turns
from feathervlm.core.errors import PruningError
from feathervlm.engine.pruning import Pruning

FIRST, AGAIN = "unpruned", "unpruned again"
PARTS = ("encoder", "selection", "prefill", "wall", "decode")
"""What is timed, in seconds; `decode` is one token's. Selection is timed inside the prefill, on the same clock as
`wall`, which is the prefill once more."""
TOKEN = 7
"""Fed in every decoding step: the model's own choice might be a placeholder, and takes no other time."""


@dataclass(frozen=True)
class Shot:
    """One run: seconds of each part, and what it left behind."""

    seconds: dict[str, float]
    kv_bytes: int
    report: dict[str, Any] | None


@dataclass(eq=False)
class Found:
    """All timed runs of one variant.

    Attributes:
        method: its spec; FIRST and AGAIN for the unpruned model.
        seconds: of each part, one for each round.
        kv_bytes: after the prefill.
        peak_bytes: by which memory grew at most; None where that cannot be told.
        report: of the last run, as `summary` has it; None without pruning.
    """

    method: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    kv_bytes: int = 0
    peak_bytes: int | None = None
    report: dict[str, Any] | None = None

    def add(self, shot: Shot) -> None:
        """One more round."""
        for part in PARTS:
            self.seconds[part].append(shot.seconds[part])
        self.kv_bytes, self.report = shot.kv_bytes, shot.report


def measure(
    model: Any,
    inputs: dict[str, Tensor],
    methods: Sequence[str],
    rounds: int,
    new_tokens: int,
    say: Callable[[str], None] = lambda now: None,
) -> list[Found]:
    """Every variant: unpruned, the methods, unpruned again.

    After a warm-up round and a round for memory, whose times do not count, all take turns in the same order, so that a
    machine that gets slower does so for all, and the unpruned runs at both ends of a round tell how much.

    Args:
        model: on its device.
        inputs: for the whole batch.
        methods: specs.
        rounds: that count.
        new_tokens: decoding steps in each run.
        say: is told what happens now.

    Raises:
        PruningError: if the model cannot be given what its encoder returned, or a method does not fit.
    """
    if "mm_encoder_outputs" not in inspect.signature(model.base_model.forward).parameters:
        raise PruningError(f"The vision encoder of {type(model).__name__} cannot be timed apart; choose another model.")
    found = {name: Found(name) for name in (FIRST, *methods, AGAIN)}
    clock = Clock(model.device)
    with torch.inference_mode():
        for name in found:
            say(f"{name}: warm-up")
            shoot(model, inputs, name, clock, 1)
        for name, variant in found.items():
            say(f"{name}: memory")
            variant.peak_bytes, _ = peak(model.device, partial(shoot, model, inputs, name, clock, 1))
        for number, name in turns(list(found), rounds):
            say(f"{name}: run {number + 1} of {rounds}")
            found[name].add(shoot(model, inputs, name, clock, new_tokens))
    return list(found.values())


def shoot(model: Any, inputs: dict[str, Tensor], name: str, clock: Clock, new_tokens: int) -> Shot:
    """One run of one variant: encoder, prefill, `new_tokens` steps."""
    base = model.base_model
    pictures, text = shared_out(base, inputs)
    with nullcontext() if name in (FIRST, AGAIN) else prune(model, name) as pruning:
        encoder, features = clock.time(lambda: base.get_image_features(**pictures, return_dict=True))
        given = {**text, "mm_encoder_outputs": {"image": features}}
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        prompt = {**given, "past_key_values": cache, "logits_to_keep": 1}
        start = time.perf_counter()
        first, _ = clock.time(partial(_next, model, prompt))
        wall = first if clock.device.type == "cuda" else time.perf_counter() - start
        held = kv_bytes(cache)
        steps = decode(model, cache, given, clock, new_tokens)
        report = summary(pruning) if isinstance(pruning, Pruning) else None
    selection = report["selection_seconds"] if report else 0.0
    seconds = (encoder, selection, first, wall, statistics.median(steps))
    return Shot(dict(zip(PARTS, seconds, strict=True)), held, report)


def shared_out(base: Any, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The vision encoder's arguments, and the decoder's; the geometry of pictures is for both, as positions need it."""
    encoder = inspect.signature(base.get_image_features).parameters
    decoder = inspect.signature(base.forward).parameters
    return (
        {name: value for name, value in inputs.items() if name in encoder},
        {name: value for name, value in inputs.items() if name in decoder and not value.is_floating_point()},
    )


def decode(model: Any, cache: Any, given: dict[str, Any], clock: Clock, tokens: int) -> list[float]:
    """Seconds of each of some steps of one token."""
    token = torch.full((len(given["input_ids"]), 1), TOKEN, device=given["input_ids"].device)
    mask = given.get("attention_mask")
    steps = []
    for _ in range(tokens):
        step = {"input_ids": token, "past_key_values": cache, "logits_to_keep": 1}
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            step |= {"attention_mask": mask, "position_ids": _place(model, mask)}
        seconds, _ = clock.time(partial(_next, model, step))
        steps.append(seconds)
    return steps


def _place(model: Any, mask: Tensor) -> Tensor:
    """The position of a padded batch's newest token as `generate` has it: (batch, 1), or on axes (3, batch, 1)."""
    place = mask.sum(1, keepdim=True) - 1
    moved = getattr(model.base_model, "rope_deltas", None)
    return place if moved is None else (place + moved).expand(3, -1, -1)


def _next(model: Any, arguments: dict[str, Any]) -> Tensor:
    """The most likely next token of each sample: (batch,)."""
    chosen: Tensor = model(**arguments).logits[:, -1].argmax(-1)
    return chosen


def summary(pruning: Pruning) -> dict[str, Any]:
    """What of a report belongs beside times: tokens left by each stage (mean over the batch), ideal ratios."""
    report = pruning.report
    if not report.pruned:
        raise PruningError(f"{report.method} pruned nothing: {report.reason}; choose another method or model.")
    return {
        "stages": [
            {"layer": stage.layer, "tokens": sum(map(len, stage.kept)) / len(stage.kept)} for stage in report.stages
        ],
        "average_tokens": report.average_tokens,
        "flops_ratio": report.flops_ratio,
        "kv_ratio": report.kv_bytes_ratio,
        "selection_seconds": report.selection_seconds,
        "notes": report.notes,
    }
