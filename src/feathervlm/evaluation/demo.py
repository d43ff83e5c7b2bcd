"""The demo: one picture, a few questions, no pruning against FastV and FEATHER; pictures, a table, a small benchmark.

By default the embedded model is asked about one of its own scenes. The picture, the prompt and the model can be given;
then there is no true box to compare with, and no benchmark. `feathervlm demo`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.embedded.assets import ANYWHERE, METHODS, SHIPPED
from feathervlm.embedded.questions import SceneQuestion, grade
from feathervlm.embedded.tasks import HELD_OUT, TASKS, sample
from feathervlm.engine.report.overlay import beside, boxed, stack
from feathervlm.engine.report.report import Report
from feathervlm.evaluation.embedded_benchmark import benchmark
from feathervlm.evaluation.embedded_result import BenchmarkResult
from feathervlm.families.box_reader import BoxReader
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answer, Answerer
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.inference.prompts import Prompt, check_prompt
from feathervlm.utils.pictures import BACKGROUND, open_picture
from feathervlm.utils.progress import Say
from feathervlm.utils.provenance import versions

ASKED = ("locate", "attribute", "existence")
PANEL = 384
TRUE, PREDICTED = "#00c853", "#ff1744"


@dataclass(frozen=True)
class DemoRequest:
    """What to show.

    Args:
        image: File of a picture; None draws scene number `seed`.
        prompt: Question; None asks the questions about the scene.
        model: Directory or hub id of a model; None for the embedded one.
        methods: Specs; empty compares FastV and FEATHER.
        seed: Number of the scene, and seed of the benchmark.
        n: Questions per task of the benchmark; 0 for no benchmark.
        max_new_tokens: Maximum length of an answer.
        background: Colour under transparent parts of the picture.
    """

    image: Path | None = None
    prompt: str | None = None
    model: str | None = None
    methods: tuple[str, ...] = ()
    seed: int = 0
    n: int = 40
    max_new_tokens: int = 32
    background: str = BACKGROUND

    @property
    def chosen(self) -> tuple[str, ...]:
        """The requested methods, or those that suit the model."""
        return tuple(dict.fromkeys(self.methods or (ANYWHERE if self.model else METHODS)))


@dataclass(frozen=True)
class DemoAnswer:
    """The answer to one question under one method, and the box that it names in pixels of the picture."""

    method: str
    question: SceneQuestion
    answer: Answer
    box: Box | None = None

    @property
    def report(self) -> Report | None:
        """The report; None if nothing was pruned."""
        report = self.answer.report
        return report if report is not None and report.pruned else None

    @property
    def grade(self) -> tuple[bool, float | None] | None:
        """Whether the answer is right, and its IoU; None if no right answer is known."""
        return grade(self.question, self.answer.text) if self.question.answer else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        report, seconds = self.report, self.answer.first_token_seconds
        correct, overlap = self.grade or (None, None)
        return {
            "method": self.method,
            "prompt": self.question.text,
            "answer": self.answer.text,
            "right_answer": self.question.answer or None,
            "correct": correct,
            "iou": overlap,
            "average_tokens": round(report.average_tokens, 2) if report else None,
            "flops_ratio": round(report.flops_ratio, 4) if report else 1.0,
            "kept": [stage.kept[0].tolist() for stage in report.stages] if report else [],
            "first_token_seconds": None if seconds is None else round(seconds, 5),
        }


@dataclass(frozen=True)
class DemoResult:
    """All answers, method by method, a picture for each method, and the benchmark if there is one."""

    request: DemoRequest
    picture: Image.Image
    answers: list[DemoAnswer]
    pictures: dict[str, Image.Image]
    benchmarks: list[BenchmarkResult]

    @property
    def overview(self) -> Image.Image:
        """The pictures of all methods, one below the other."""
        return stack(list(self.pictures.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "model": self.request.model or SHIPPED,
            "seed": self.request.seed,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "replies": [answer.to_dict() for answer in self.answers],
            "benchmarks": [result.to_dict() for result in self.benchmarks],
        }


def show(request: DemoRequest, say: Say = lambda now: None) -> DemoResult:
    """Ask, prune, draw and measure.

    Args:
        request: What to show.
        say: Callback, called with what happens now.

    Raises:
        PruningError: An input does not fit; the message says which, and the remedy.
    """
    picture, questions = _picture_and_questions(request)
    say(f"loading {request.model or 'the embedded model'}")
    spec = ModelSpec(request.model or SHIPPED, max_new_tokens=request.max_new_tokens).as_stored()
    checked = loading.check(spec, request.chosen)
    for question in questions:
        check_prompt(checked.processor, question.text)
    boxes = BoxReader.of(checked)
    read = boxes.read if boxes.format is not None and boxes.counts(picture.size) else lambda *_: None
    answerer = Answerer(checked.load())
    answers = []
    for method in (UNPRUNED, *request.chosen):
        for question in questions:
            say(f"{method}: {question.text}")
            batch = answerer.prepare([Prompt(question.text, (picture,))])
            answerer.answer(batch, method)  # warms up
            answer = answerer.answer(batch, method, timed=True)[0]
            answers.append(DemoAnswer(method, question, answer, read(answer.text, picture.size)))
    firsts = {one.method: one for one in reversed(answers)}
    pictures = {
        method: draw_answer(picture, firsts[method], answerer.processor) for method in (UNPRUNED, *request.chosen)
    }

    def told(what: str, done: int, total: int) -> None:
        say(f"benchmark of {what}: {done} of {total} questions")

    measured = (None, *request.chosen) if request.model is None and request.image is None and request.n else ()
    benchmarks = [benchmark(method, n=request.n, seed=request.seed, progress=told) for method in measured]
    return DemoResult(request, picture, answers, pictures, benchmarks)


def _picture_and_questions(request: DemoRequest) -> tuple[Image.Image, list[SceneQuestion]]:
    """Return the picture and the questions; only questions of the embedded model about its own scene have answers."""
    if request.image is not None:
        if not request.prompt:
            raise PruningError(f"--image {request.image} needs a question: give --prompt too.")
        picture = open_picture(request.image, background=request.background)
        return picture, [SceneQuestion("yours", request.prompt, "")]
    scene, first = sample(ASKED[0], HELD_OUT + request.seed, 0)
    if request.prompt:
        return scene.image, [SceneQuestion("yours", request.prompt, "")]
    rng = np.random.default_rng([HELD_OUT + request.seed, len(TASKS)])
    others = [TASKS[task].ask(scene, rng) for task in ASKED[1:]]
    questions = [first, *(question for question in others if question is not None)]
    if request.model:
        questions = [SceneQuestion("yours", question.text, "") for question in questions]
    return scene.image, questions


def draw_answer(picture: Image.Image, answer: DemoAnswer, processor: Any) -> Image.Image:
    """Draw the picture with the true and the predicted box, and beside it the patches that each stage kept."""
    boxes = {TRUE: answer.question.box, PREDICTED: answer.box}
    panel = boxed(picture, {colour: box for colour, box in boxes.items() if box}, answer.method, PANEL)
    if answer.report is None:
        return panel
    return beside([panel, answer.report.overlay(picture, processor=processor, size=PANEL)])
