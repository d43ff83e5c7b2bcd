"""One prompt, unpruned and pruned: answers, times and report; `feathervlm run`.

What can be refused is refused before the weights are read.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from feathervlm.engine.report.overlay import stack
from feathervlm.engine.report.report import Report
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answer, Answerer, Batch
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.inference.prompts import Prompt, check_prompt
from feathervlm.methods import Method
from feathervlm.utils.pictures import BACKGROUND, open_picture
from feathervlm.utils.progress import Say
from feathervlm.utils.provenance import versions

GAIN = 0.95
"""Largest share of the unpruned time to the first token that counts as a gain."""


@dataclass(frozen=True)
class RunRequest:
    """A prompt about pictures for a model, and the method to run it with.

    Args:
        spec: Which model answers; `max_new_tokens` is the length of the answer.
        images: Files of the pictures.
        prompt: The question.
        method: Method to prune with; None runs unpruned only.
        repeats: Timed runs of each kind.
        strict: Refuse what cannot be pruned.
        background: Colour under transparent parts of the pictures.
    """

    spec: ModelSpec
    images: tuple[Path, ...]
    prompt: str
    method: Method | None
    repeats: int = 2
    strict: bool = True
    background: str = BACKGROUND


@dataclass(frozen=True)
class RunResult:
    """The answers with median times; `pruned` and `report` are None without a method."""

    request: RunRequest
    settings: dict[str, Any]
    unpruned: Answer
    pruned: Answer | None
    report: Report | None
    overlay: Image.Image | None = None

    @property
    def gain(self) -> bool | None:
        """Whether the first token came sooner by a margin that counts; None if nothing was pruned."""
        if self.pruned is None:
            return None
        return _first(self.pruned) <= GAIN * _first(self.unpruned)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        answers = {"unpruned": self.unpruned, "pruned": self.pruned}
        return {
            "model": self.request.spec.model,
            "method": str(self.request.method or UNPRUNED),
            "prompt": self.request.prompt,
            "images": [str(path) for path in self.request.images],
            "answers": {name: one and one.text for name, one in answers.items()},
            "new_tokens": {name: one and one.tokens for name, one in answers.items()},
            "seconds": {
                name: one and {"first_token": one.first_token_seconds, "total": one.seconds}
                for name, one in answers.items()
            },
            "gain": self.gain,
            "report": self.report and self.report.to_dict(),
            "settings": self.settings,
            "versions": versions(),
        }


def run(request: RunRequest, *, draw: bool = False, say: Say = lambda now: None) -> RunResult:
    """Answer a prompt unpruned and pruned.

    Args:
        request: What to run.
        draw: Whether to draw the kept patches.
        say: Callback, called with what happens now.

    Raises:
        PruningError: An input does not fit; the message says which, and the remedy.
    """
    pictures = tuple(open_picture(path, background=request.background) for path in request.images)
    name = request.spec.model
    say(f"looking at {name}")
    checked = loading.check(request.spec.as_stored(), [request.method], strict=request.strict)
    check_prompt(checked.processor, request.prompt, len(pictures))
    say(f"loading {name}")
    answerer = Answerer(checked.load(), strict=request.strict)
    unpruned, pruned, report = _compare(answerer, answerer.prepare([Prompt(request.prompt, pictures)]), request, say)
    settings = {
        "device": str(checked.device),
        "dtype": str(answerer.model.dtype).removeprefix("torch."),
        "attention": request.spec.attention,
        "max_new_tokens": checked.settings.max_new_tokens,
        "repeats": request.repeats,
    }
    overlay = None
    if draw and report is not None and report.pruned:
        views = [report.overlay(one, processor=answerer.processor, image=place) for place, one in enumerate(pictures)]
        overlay = stack(views)
    return RunResult(request, settings, unpruned, pruned, report, overlay)


def _compare(
    answerer: Answerer, batch: Batch, request: RunRequest, say: Say
) -> tuple[Answer, Answer | None, Report | None]:
    """Return median unpruned and pruned answers, taken in turns after one discarded round, and the last report."""
    rounds: dict[str, list[Answer]] = {"unpruned": [], "pruned": []}
    for number in range(request.repeats + 1):
        which = f"{number} of {request.repeats}" if number else "(warm-up)"
        for kind, method in (("unpruned", None), ("pruned", request.method)):
            if kind == "unpruned" or method is not None:
                say(f"{kind} run {which}")
                rounds[kind] += answerer.answer(batch, method, timed=True)
    unpruned, pruned = (_middle(answers[1:]) if answers else None for answers in rounds.values())
    assert unpruned is not None, "there is at least one unpruned run"
    return unpruned, pruned, rounds["pruned"][-1].report if pruned else None


def _middle(answers: list[Answer]) -> Answer:
    """Return the first answer, which greedy decoding repeats, with median times."""
    return replace(
        answers[0],
        first_token_seconds=median(map(_first, answers)),
        seconds=median(answer.seconds for answer in answers),
    )


def _first(answer: Answer) -> float:
    assert answer.first_token_seconds is not None, "the answer was timed"
    return answer.first_token_seconds
