"""One prompt, unpruned and pruned: answers, times, report.

Everything that can be refused cheaply is refused before the weights are read. Knows nothing of the terminal.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.generation.streamers import BaseStreamer

from feathervlm.api import prune
from feathervlm.engine.family import Family
from feathervlm.engine.report.overlay import stack
from feathervlm.engine.report.report import Report
from feathervlm.families import family_of
from feathervlm.inference import loading, prompts
from feathervlm.methods import Method
from feathervlm.utils.provenance import versions

Say = Callable[[str], None]

GAIN = 0.95
"""The pruned first token must take no more than this share of the unpruned time to count as a gain."""


@dataclass(frozen=True)
class Request:
    """What to run: a prompt about pictures on a model, with a method (None: unpruned only)."""

    model: str
    images: tuple[Path, ...]
    prompt: str
    method: Method | None
    max_new_tokens: int = 64
    repeats: int = 2
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "sdpa"
    strict: bool = True


@dataclass(frozen=True)
class Run:
    """An answer, and the seconds to its first token and to its end."""

    answer: str
    new_tokens: int
    first_token: float
    total: float


@dataclass(frozen=True)
class Outcome:
    """What came out; `pruned` and `report` are None if there was no method."""

    request: Request
    settings: dict[str, Any]
    unpruned: Run
    pruned: Run | None
    report: Report | None
    overlay: Image.Image | None = None

    @property
    def gain(self) -> bool | None:
        """Whether the first token came sooner by a margin that counts; None if nothing was pruned."""
        return None if self.pruned is None else self.pruned.first_token <= GAIN * self.unpruned.first_token

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        runs = {"unpruned": self.unpruned, "pruned": self.pruned}
        times = {name: run and {"first_token": run.first_token, "total": run.total} for name, run in runs.items()}
        return {
            "model": self.request.model,
            "method": str(self.request.method or "none"),
            "prompt": self.request.prompt,
            "images": [str(path) for path in self.request.images],
            "answers": {name: run and run.answer for name, run in runs.items()},
            "new_tokens": {name: run and run.new_tokens for name, run in runs.items()},
            "seconds": times,
            "gain": self.gain,
            "report": self.report and self.report.to_dict(),
            "settings": self.settings,
            "versions": versions(),
        }


def run(request: Request, *, draw: bool = False, say: Say = lambda now: None) -> Outcome:
    """Answer the prompt unpruned and pruned.

    Args:
        request: what to run.
        draw: make a picture of what was kept, too.
        say: is told what happens now.

    Raises:
        PruningError: on whatever the user can put right.
    """
    pictures = [prompts.open_picture(path) for path in request.images]
    device, dtype = loading.choose_device(request.device), loading.choose_dtype(request.dtype)
    with loading.quiet():
        say(f"looking at {request.model}")
        check(request, loading.load_config(request.model))
        processor = loading.load_processor(request.model)
        inputs = prompts.prepare(processor, request.prompt, pictures)
        say(f"loading {request.model}")
        model, missing = loading.load_model(request.model, dtype, request.attention)
        warn_of_missing(request.model, missing)
        model.to(device)
        unpruned, pruned, report = compare(model, processor, inputs.to(device, dtype=model.dtype), request, say)
    settings = {
        "device": str(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": request.attention,
        "max_new_tokens": request.max_new_tokens,
        "repeats": request.repeats,
    }
    overlay = None
    if draw and report is not None and report.pruned:
        overlay = draw_overlay(report, family_of(model), processor, pictures)
    return Outcome(request, settings, unpruned, pruned, report, overlay)


def warn_of_missing(model: str, missing: list[str]) -> None:
    """Warn if the checkpoint of a model lacks weights."""
    if missing:
        warnings.warn(
            f"feathervlm found no weights for {len(missing)} tensors of {model}, such as {missing[0]}; "
            "they are random and the answers are noise.",
            stacklevel=3,
        )


def check(request: Request, config: PreTrainedConfig) -> None:
    """Try method and attention on the model without weights.

    Raises:
        PruningError: if they do not fit.
    """
    model = loading.empty_model(config, request.attention)
    if request.method is None:
        return
    prune(model, request.method, strict=request.strict).remove()


def compare(
    model: Any, processor: Any, inputs: Any, request: Request, say: Say
) -> tuple[Run, Run | None, Report | None]:
    """Median unpruned and pruned runs, taken in turns after one discarded round, and the last report."""
    rounds: list[tuple[Run, Run | None]] = []
    report = None
    for number in range(request.repeats + 1):
        which = f"{number} of {request.repeats}" if number else "(warm-up)"
        say(f"unpruned run {which}")
        unpruned, pruned = generate(model, processor, inputs, request.max_new_tokens), None
        if request.method is not None:
            say(f"pruned run {which}")
            with prune(model, request.method, strict=request.strict) as pruning:
                pruned = generate(model, processor, inputs, request.max_new_tokens)
            report = pruning.report
        rounds.append((unpruned, pruned))
    timed = rounds[1:]
    both = [run for _, run in timed if run is not None]
    return middle([run for run, _ in timed]), middle(both) if both else None, report


def middle(runs: list[Run]) -> Run:
    """The first answer (greedy decoding repeats itself) with median times."""
    first = runs[0]
    return Run(
        first.answer, first.new_tokens, median(run.first_token for run in runs), median(run.total for run in runs)
    )


class FirstToken(BaseStreamer):
    """Notes when the first generated token is on the host. On MPS transformers streams one token late."""

    def __init__(self) -> None:
        self.start, self.calls, self.seconds = time.perf_counter(), 0, 0.0

    def put(self, value: Tensor) -> None:
        """The prompt comes first, then one token after the other."""
        self.calls += 1
        if self.calls == 2:
            self.seconds = time.perf_counter() - self.start

    def end(self) -> None:
        """Nothing to do."""


def generate(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> Run:
    """One greedy answer, timed from the prepared inputs on."""
    if model.device.type != "cpu":
        torch.accelerator.synchronize()
    clock = FirstToken()
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, streamer=clock)
    total = time.perf_counter() - clock.start
    new = output[0, inputs["input_ids"].shape[1] :]
    return Run(processor.decode(new, skip_special_tokens=True).strip(), len(new), clock.seconds, total)


def draw_overlay(report: Report, family: type[Family], processor: Any, pictures: list[Image.Image]) -> Image.Image:
    """What was kept of every picture, one row each."""
    return stack(
        [
            report.overlay(picture, image=number, box=family.shown(processor, picture.size))
            for number, picture in enumerate(pictures)
        ]
    )
