"""Measures one case, a model with a batch of inputs: unpruned, with each method, and unpruned again, in turns.

The vision encoder is run apart from the decoder, as `generate` does it, and inside the pruning, so that its time
includes the signals that a method reads there.
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
from feathervlm.bench.timing import RunTimer, turns
from feathervlm.core.errors import PruningError
from feathervlm.engine.pruning import Pruning
from feathervlm.inference.model_spec import UNPRUNED

REPEATED = f"{UNPRUNED} again"
"""Name of the second unpruned run of a round."""
PARTS = ("encoder", "selection", "prefill", "wall", "decode")
"""The timed parts, in seconds; `decode` is one token's. Selection is timed inside the prefill, on the same clock as
`wall`, which is the prefill by the wall clock."""
TOKEN = 7
"""Token that every decoding step is given: the model's own choice might be a placeholder, and takes the same time."""


@dataclass(frozen=True)
class Timing:
    """The result of one run.

    Attributes:
        seconds: Seconds of each part.
        kv_bytes: Bytes of the KV cache after the prefill.
        report: Summary of the pruning report; None without pruning.
    """

    seconds: dict[str, float]
    kv_bytes: int
    report: dict[str, Any] | None


@dataclass(eq=False)
class Variant:
    """All timed runs of one method, or of the unpruned model.

    Attributes:
        method: Spec of the method; UNPRUNED and REPEATED for the unpruned model.
        seconds: Seconds of each part, one value per round.
        kv_bytes: Bytes of the KV cache after the prefill.
        peak_bytes: Bytes by which memory grew at most; None where the system does not report it.
        report: Summary of the pruning report of the last run; None without pruning.
    """

    method: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    kv_bytes: int = 0
    peak_bytes: int | None = None
    report: dict[str, Any] | None = None

    def add(self, timing: Timing) -> None:
        """Add the result of one more round."""
        for part in PARTS:
            self.seconds[part].append(timing.seconds[part])
        self.kv_bytes, self.report = timing.kv_bytes, timing.report


def measure(
    model: Any,
    inputs: dict[str, Tensor],
    methods: Sequence[str],
    rounds: int,
    new_tokens: int,
    progress: Callable[[str], None] = lambda what: None,
) -> list[Variant]:
    """Measure every variant: unpruned, the methods, unpruned again.

    A warm-up round and a round for memory come first; their times do not count. Then all variants take turns in the
    same order, so that a machine that gets slower does so for all, and the unpruned runs at both ends of a round show
    by how much.

    Args:
        model: Model on its device.
        inputs: Inputs of the whole batch.
        methods: Specs of the methods.
        rounds: Number of timed rounds.
        new_tokens: Number of decoding steps per run.
        progress: Called with a description before every run.

    Raises:
        PruningError: If the model does not accept the output of its encoder, or a method does not fit.
    """
    if "mm_encoder_outputs" not in inspect.signature(model.base_model.forward).parameters:
        raise PruningError(f"The vision encoder of {type(model).__name__} cannot be timed apart; choose another model.")
    variants = {name: Variant(name) for name in (UNPRUNED, *methods, REPEATED)}
    timer = RunTimer(model.device)
    with torch.inference_mode():
        for name in variants:
            progress(f"{name}: warm-up")
            run_once(model, inputs, name, timer, 1)
        for name, variant in variants.items():
            progress(f"{name}: memory")
            variant.peak_bytes, _ = peak(model.device, partial(run_once, model, inputs, name, timer, 1))
        for number, name in turns(list(variants), rounds):
            progress(f"{name}: run {number + 1} of {rounds}")
            variants[name].add(run_once(model, inputs, name, timer, new_tokens))
    return list(variants.values())


def run_once(model: Any, inputs: dict[str, Tensor], name: str, timer: RunTimer, new_tokens: int) -> Timing:
    """Run one variant once: the encoder, the prefill and `new_tokens` decoding steps."""
    base = model.base_model
    pictures, text = split_inputs(base, inputs)
    with nullcontext() if name in (UNPRUNED, REPEATED) else prune(model, name) as pruning:
        encoder, features = timer.time(lambda: base.get_image_features(**pictures, return_dict=True))
        encoded = {**text, "mm_encoder_outputs": {"image": features}}
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        prompt = {**encoded, "past_key_values": cache, "logits_to_keep": 1}
        start = time.perf_counter()
        prefill, _ = timer.time(partial(_next_token, model, prompt))
        wall = prefill if timer.device.type == "cuda" else time.perf_counter() - start
        cache_bytes = kv_bytes(cache)
        steps = decode(model, cache, encoded, timer, new_tokens)
        report = summarize(pruning) if isinstance(pruning, Pruning) else None
    selection = report["selection_seconds"] if report else 0.0
    seconds = (encoder, selection, prefill, wall, statistics.median(steps))
    return Timing(dict(zip(PARTS, seconds, strict=True)), cache_bytes, report)


def split_inputs(base: Any, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the arguments of the vision encoder, and those of the decoder.

    The geometry of pictures is in both, since the decoder's positions depend on it.
    """
    encoder = inspect.signature(base.get_image_features).parameters
    decoder = inspect.signature(base.forward).parameters
    return (
        {name: value for name, value in inputs.items() if name in encoder},
        {name: value for name, value in inputs.items() if name in decoder and not value.is_floating_point()},
    )


def decode(model: Any, cache: Any, inputs: dict[str, Any], timer: RunTimer, tokens: int) -> list[float]:
    """Run decoding steps of one token each and return the seconds of every step."""
    token = torch.full((len(inputs["input_ids"]), 1), TOKEN, device=inputs["input_ids"].device)
    mask = inputs.get("attention_mask")
    steps = []
    for _ in range(tokens):
        step = {"input_ids": token, "past_key_values": cache, "logits_to_keep": 1}
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            step |= {"attention_mask": mask, "position_ids": _position(model, mask)}
        seconds, _ = timer.time(partial(_next_token, model, step))
        steps.append(seconds)
    return steps


def _position(model: Any, mask: Tensor) -> Tensor:
    """Return the newest token's position in a padded batch as `generate` has it: (batch, 1), or (3, batch, 1)."""
    position = mask.sum(1, keepdim=True) - 1
    deltas = getattr(model.base_model, "rope_deltas", None)
    return position if deltas is None else (position + deltas).expand(3, -1, -1)


def _next_token(model: Any, arguments: dict[str, Any]) -> Tensor:
    """Return the most likely next token of each sample, of shape (batch,)."""
    token: Tensor = model(**arguments).logits[:, -1].argmax(-1)
    return token


def summarize(pruning: Pruning) -> dict[str, Any]:
    """Return the part of a report that is shown with times: tokens kept by each stage (batch mean), ideal ratios."""
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
