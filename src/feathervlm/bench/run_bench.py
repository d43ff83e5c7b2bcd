"""All cases of a benchmark: what does not fit is refused first, then each model is built once and every case measured.

Knows nothing of the terminal.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from feathervlm.bench import memory_check, presets, verdict
from feathervlm.bench.inputs import Prompt
from feathervlm.bench.measure import measure
from feathervlm.bench.rows import Case, rows
from feathervlm.bench.targets import Built, Loaded, Subject, check
from feathervlm.bench.timing import Clock
from feathervlm.core.errors import PruningError
from feathervlm.inference import loading
from feathervlm.methods import get
from feathervlm.utils.provenance import provenance
from feathervlm.utils.quiet import quiet

SCHEMA = 1
Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to measure: every number of tokens at every depth and batch size.

    Attributes:
        config: name of a preset; `model` wins.
        model: a directory, or an id on the hub.
        methods: specs.
        tokens: visual tokens of a sample; none: the model's usual picture.
        batches: sizes.
        layers: of the decoder; none: its own.
        new_tokens: of an answer.
        rounds: that count.
        text_tokens: of a prompt to a preset.
        ragged: samples of different lengths, padded on the left.
        device: as `loading.choose_device` takes it.
        dtype: `auto`: float32 on a CPU and else bfloat16 for a preset, what is stored for a model.
        attention: implementation.
        threads: of torch; None: as many as it takes by itself.
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


def run(request: Request, say: Say = lambda now: None) -> dict[str, Any]:
    """Measure, and return the document: provenance, settings, rows, verdicts, break-even points, what was refused.

    Raises:
        PruningError: on whatever the user can put right, and if nothing that was asked for fits into memory.
    """
    methods = tuple(dict.fromkeys(str(get(spec)) for spec in request.methods))
    with threads(request.threads), quiet():
        subject = choose(request)
        planned, refused = plan(request, subject, methods, say)
        found: list[dict[str, Any]] = []
        facts: dict[str, Any] = {}
        for empty, prompt, batches in planned:
            say("building the model")
            model = subject.build(empty)
            facts = facts or describe(model)
            for size in batches:
                inputs = prompt.batch(size, request.ragged, model.device, model.dtype)
                depth = len(model.get_decoder().layers)
                case = Case(prompt.visual, prompt.length, size, depth, request.new_tokens)
                where = f"{case.tokens} tokens, batch {size}, {depth} layers: "
                told = partial(_say_where, say, where)
                found += rows(case, measure(model, inputs, methods, request.rounds, request.new_tokens, told))
            del model
            gc.collect()
        return {
            "schema": SCHEMA,
            "provenance": provenance(),
            "settings": settings(request, subject),
            "model": facts,
            "rows": found,
            "verdicts": [one.to_dict() for one in verdict.verdicts(found)],
            "break_even": [one.to_dict() for one in verdict.break_even(found)],
            "refused": refused,
        }


def _say_where(say: Say, where: str, now: str) -> None:
    say(where + now)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads of torch while this lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose(request: Request) -> Subject:
    """What is to be measured."""
    device, dtype = loading.choose_device(request.device), loading.choose_dtype(request.dtype)
    if request.model is not None:
        return Loaded(device, dtype, request.attention, request.model)
    return Built(device, dtype, request.attention, presets.get(request.config), request.text_tokens)


def plan(
    request: Request, subject: Subject, methods: tuple[str, ...], say: Say
) -> tuple[list[tuple[Any, Prompt, list[int]]], list[dict[str, Any]]]:
    """(model without weights, prompt, batch sizes) for all that fits, and what does not.

    Raises:
        PruningError: if nothing fits, or a prompt or a method is impossible.
    """
    name = request.model or request.config
    planned, refused = [], []
    for tokens, layers in subject.sizes(request.tokens, request.layers):
        say(f"looking at {name}")
        empty, prompt = subject.look(tokens, layers)
        check(empty, methods)
        dtype, schedules = subject.type_of(empty), [get(spec).schedule() for spec in methods]
        batches = []
        for size in request.batches:
            needed = memory_check.need(empty, prompt.inputs, size, request.new_tokens, dtype.itemsize, schedules)
            kind = str(dtype).removeprefix("torch.")
            what = f"{name} in {kind} with {prompt.visual} visual tokens and batch {size}"
            why = memory_check.refusal(needed, subject.device, what)
            if why is None:
                batches.append(size)
            else:
                depth = empty.config.get_text_config(decoder=True).num_hidden_layers
                refused.append({"tokens": prompt.visual, "batch": size, "layers": depth, "reason": why})
        if batches:
            planned.append((empty, prompt, batches))
    if not planned:
        raise PruningError(refused[0]["reason"])
    return planned, refused


def describe(model: Any) -> dict[str, Any]:
    """The dimensions that decide the speed of a model with weights."""
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


def settings(request: Request, subject: Subject) -> dict[str, Any]:
    """The request, and where it ran."""
    device = subject.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    asked = asdict(request) | {"config": None if request.model else request.config}
    return {**asked, "device": name, "clock": Clock(device).kind}
