"""Runs all cases of a benchmark: refuses what does not fit, then builds each model once and measures every case."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from feathervlm.bench import memory_check, presets, verdict
from feathervlm.bench.inputs import BenchPrompt
from feathervlm.bench.measure import measure
from feathervlm.bench.rows import BenchCase, rows
from feathervlm.bench.targets import BenchTarget, PresetTarget, PretrainedTarget, check_methods
from feathervlm.bench.timing import RunTimer
from feathervlm.core.errors import PruningError
from feathervlm.inference import loading
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.methods import get
from feathervlm.utils.provenance import provenance
from feathervlm.utils.quiet import quiet

SCHEMA = 1


@dataclass(frozen=True)
class BenchRequest:
    """What to measure: every number of tokens at every depth and batch size.

    Attributes:
        config: Name of a preset; unused if `model` is given.
        model: Model directory or hub id.
        methods: Specs of the methods.
        tokens: Visual tokens of a sample; empty for the model's usual picture.
        batches: Batch sizes.
        layers: Numbers of decoder layers; empty for the model's own.
        new_tokens: Number of tokens of an answer.
        rounds: Number of timed rounds.
        text_tokens: Text tokens of a prompt to a preset.
        ragged: Whether samples have different lengths and are padded on the left.
        device: Name of a device, as `loading.choose_device` takes it.
        dtype: Name of a type. `auto` is the stored type for a model, and for a preset float32 on a CPU and bfloat16
            elsewhere.
        attention: Attention implementation.
        threads: Number of torch's threads; None leaves it unchanged.
    """

    config: str = "llava-170m"
    model: str | None = None
    methods: tuple[str, ...] = ("fastv", "feather")
    tokens: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    layers: tuple[int, ...] = ()
    new_tokens: int = 16
    rounds: int = 3
    text_tokens: int = 59
    ragged: bool = False
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    threads: int | None = 1


def run(request: BenchRequest, progress: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Measure and return the document: provenance, settings, rows, verdicts, break-even points and refused cases.

    Args:
        request: What to measure.
        progress: Called with a description before every step.

    Raises:
        PruningError: If the request cannot be met, or no case fits into memory.
    """
    methods = tuple(dict.fromkeys(str(get(spec)) for spec in request.methods))
    with threads(request.threads), quiet():
        target = choose_target(request)
        planned, refused = plan(request, target, methods, progress)
        measured: list[dict[str, Any]] = []
        facts: dict[str, Any] = {}
        for empty, prompt, batches in planned:
            progress("building the model")
            model = target.build(empty)
            facts = facts or describe(model)
            depth = len(model.get_decoder().layers)
            for size in batches:
                inputs = prompt.batch(size, request.ragged, model.device, model.dtype)
                case = BenchCase(prompt.visual, prompt.length, size, depth, request.new_tokens)
                report = _prefixed(progress, f"{case.tokens} tokens, batch {size}, {depth} layers: ")
                measured += rows(case, measure(model, inputs, methods, request.rounds, request.new_tokens, report))
            del model
            gc.collect()
        return {
            "schema": SCHEMA,
            "provenance": provenance(),
            "settings": settings(request, target),
            "model": facts,
            "rows": measured,
            "verdicts": [one.to_dict() for one in verdict.verdicts(measured)],
            "break_even": [one.to_dict() for one in verdict.break_even(measured)],
            "refused": refused,
        }


def _prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda what: progress(prefix + what)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's threads inside the block; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_target(request: BenchRequest) -> BenchTarget:
    """Return the model to measure."""
    device, dtype = loading.choose_device(request.device), loading.choose_dtype(request.dtype)
    if request.model is not None:
        return PretrainedTarget(device, dtype, request.attention, ModelSpec(request.model).path)
    return PresetTarget(device, dtype, request.attention, presets.get(request.config), request.text_tokens)


def plan(
    request: BenchRequest, target: BenchTarget, methods: tuple[str, ...], progress: Callable[[str], None]
) -> tuple[list[tuple[Any, BenchPrompt, list[int]]], list[dict[str, Any]]]:
    """Return (model without weights, prompt, batch sizes) of all cases that fit, and the cases that do not.

    Raises:
        PruningError: If no case fits, or a prompt or a method is impossible.
    """
    name = request.model or request.config
    planned, refused = [], []
    for tokens, layers in target.sizes(request.tokens, request.layers):
        progress(f"inspecting {name}")
        empty, prompt = target.inspect(tokens, layers)
        check_methods(empty, methods)
        dtype, schedules = target.type_of(empty), [get(spec).schedule() for spec in methods]
        batches = []
        for size in request.batches:
            needed = memory_check.estimate(empty, prompt.inputs, size, request.new_tokens, dtype.itemsize, schedules)
            kind = str(dtype).removeprefix("torch.")
            what = f"{name} in {kind} with {prompt.visual} visual tokens and batch {size}"
            reason = memory_check.refusal(needed, target.device, what)
            if reason is None:
                batches.append(size)
            else:
                depth = empty.config.get_text_config(decoder=True).num_hidden_layers
                refused.append({"tokens": prompt.visual, "batch": size, "layers": depth, "reason": reason})
        if batches:
            planned.append((empty, prompt, batches))
    if not planned:
        raise PruningError(refused[0]["reason"])
    return planned, refused


def describe(model: Any) -> dict[str, Any]:
    """Return the dimensions that decide the speed of a model."""
    text = model.config.get_text_config(decoder=True)
    vision = sum(part.numel() for name, part in model.named_parameters() if ".vision" in name or ".visual" in name)
    return {
        "type": model.config.model_type,
        "parameters": sum(part.numel() for part in model.parameters()),
        "vision_parameters": vision,
        "hidden_size": text.hidden_size,
        "layers": text.num_hidden_layers,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def settings(request: BenchRequest, target: BenchTarget) -> dict[str, Any]:
    """Return the request with the device and the clock that were used."""
    device = target.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    values = asdict(request) | {"config": None if request.model else request.config}
    return {**values, "device": name, "clock": RunTimer(device).kind}
