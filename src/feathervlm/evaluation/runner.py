"""Questions under methods: answered in this process or over a pool of processes, graded, and stored as they come."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch

from feathervlm.core.layout import Box
from feathervlm.engine.report.overlay import inside
from feathervlm.engine.report.report import finest
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.samples import Sample, pack
from feathervlm.evaluation.shard import ALONE, Shard
from feathervlm.evaluation.store import AnswerStore
from feathervlm.evaluation.tasks.base import Question, QuestionSet, Reading
from feathervlm.families.box_reader import BoxReader
from feathervlm.inference import loading
from feathervlm.inference.answerer import Answer, Answerer, AnyMethod
from feathervlm.inference.loading import LoadedModel
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt
from feathervlm.utils.processes import workers
from feathervlm.utils.progress import Progress


@dataclass(frozen=True)
class Work:
    """A chunk of questions of one set under one or several methods."""

    part: int
    chunk: tuple[int, ...]
    methods: tuple[str, ...]


Samples = Mapping[str, Sequence[Sample]]
"""The answers to a chunk by method."""


def open_work(
    sets: Sequence[QuestionSet], methods: Sequence[str], store: AnswerStore, shard: Shard = ALONE
) -> list[Work]:
    """Return the chunks of this process that some methods have not answered, chunk after chunk."""
    work, place = [], 0
    for part, questions in enumerate(sets):
        known = {method: store.read(questions, method) for method in methods}
        for chunk in questions.chunks:
            missing = tuple(method for method in methods if chunk[0] not in known[method])
            if missing and place % shard.world == shard.rank:
                work.append(Work(part, chunk, missing))
            place += 1
    return work


def by_method(work: Sequence[Work], methods: Sequence[str]) -> list[Work]:
    """Return the same work method after method, with one method for each piece."""
    return [replace(piece, methods=(method,)) for method in methods for piece in work if method in piece.methods]


def check_pictures(
    sets: Sequence[QuestionSet], work: Sequence[Work], protocol: Protocol, progress: Progress = lambda *_: None
) -> None:
    """Decode every picture that will be shown, so that a damaged one is found before the first question is asked.

    Args:
        sets: The questions.
        work: Pieces of work, from `open_work`.
        protocol: Rules of scoring, see `evaluation.metrics`.
        progress: Callback, called with which picture is opened now, and zeros, because no answer is counted yet.

    Raises:
        PruningError: A picture cannot be opened.
    """
    asked = [(sets[piece.part].task, sets[piece.part].questions[number]) for piece in work for number in piece.chunk]
    shown = {(task.name, question.image): (task, question) for task, question in asked if question.image}
    for number, (task, question) in enumerate(shown.values(), 1):
        progress(f"opening picture {number} of {len(shown)}", 0, 0)
        task.open(question, protocol)


def run(
    spec: ModelSpec,
    sets: Sequence[QuestionSet],
    work: Sequence[Work],
    store: AnswerStore,
    *,
    protocol: Protocol = "symmetric",
    processes: int = 1,
    done: Callable[[Work], None] = lambda piece: None,
) -> None:
    """Answer and store pieces of work; a model is loaded once in each process.

    Args:
        spec: Which model answers.
        sets: The questions.
        work: Pieces of work, from `open_work`.
        store: Where the answers are written.
        protocol: Rules of scoring, see `evaluation.metrics`.
        processes: Number of processes; 1 answers in this one.
        done: Callback, called with each piece of work after it was stored.

    Raises:
        PruningError: A picture cannot be opened or a method does not fit.
    """
    if not work:
        return
    alone = processes == 1
    answer = partial(_answer, Asker(loading.load(spec), protocol, spec.max_new_tokens), sets) if alone else _answer_own
    pool = nullcontext(map) if alone else workers(min(processes, len(work)), _prepare, spec, sets, protocol)
    with pool as mapped:
        for piece, samples in mapped(answer, work):
            for method, found in samples.items():
                store.append(sets[piece.part], method, found)
            done(piece)


def _answer(asker: "Asker", sets: Sequence[QuestionSet], piece: Work) -> tuple[Work, Samples]:
    return piece, asker.answer(sets[piece.part], piece.chunk, {method: method for method in piece.methods})


_own: "tuple[Asker, Sequence[QuestionSet]]"


def _prepare(spec: ModelSpec, sets: Sequence[QuestionSet], protocol: Protocol) -> None:
    """Load the model of a worker process."""
    global _own
    warnings.filterwarnings("ignore", message="feathervlm reads")  # the parent process has said it
    torch.set_num_threads(1)
    _own = Asker(loading.load(spec), protocol, spec.max_new_tokens), sets


def _answer_own(piece: Work) -> tuple[Work, Samples]:
    return _answer(*_own, piece)


class Asker:
    """A model that is asked questions, and whose answers are graded.

    Args:
        loaded: The model with its processor.
        protocol: Rules of scoring, see `evaluation.metrics`.
        length: Maximum length of an answer; None for that of the task, else that of the model.
    """

    def __init__(self, loaded: LoadedModel, protocol: Protocol = "symmetric", length: int | None = None) -> None:
        self.answerer, self.protocol, self.length = Answerer(loaded), protocol, length
        self.boxes = BoxReader.of(loaded)

    def answer(
        self, questions: QuestionSet, chunk: Sequence[int], methods: Mapping[str, AnyMethod]
    ) -> dict[str, list[Sample]]:
        """Answer a chunk of questions under methods; pictures and prompts are prepared once for all methods.

        Args:
            questions: The set of questions.
            chunk: Indices of the questions, all of which have choices, or none has any.
            methods: Methods by the name under which their answers are returned.

        Raises:
            PruningError: A picture cannot be opened, a method does not fit, or a choice is not one token.
        """
        samples: dict[str, list[Sample]] = {name: [] for name in methods}
        for start in range(0, len(chunk), self.answerer.batch):
            numbers = chunk[start : start + self.answerer.batch]
            for name, found in self._answer_batch(questions, numbers, methods).items():
                samples[name] += found
        return samples

    def _answer_batch(
        self, questions: QuestionSet, numbers: Sequence[int], methods: Mapping[str, AnyMethod]
    ) -> dict[str, list[Sample]]:
        task, asked = questions.task, [questions.questions[number] for number in numbers]
        pictures = [task.open(question, self.protocol) for question in asked]
        prompts = [
            Prompt(task.prompt(question, self.protocol, self.boxes.format), (picture,))
            for question, picture in zip(asked, pictures, strict=True)
        ]
        batch = self.answerer.prepare(prompts)
        readings = [
            Reading(self.protocol, picture.size, partial(self.boxes.read, size=picture.size)) for picture in pictures
        ]
        samples = {}
        for name, method in methods.items():
            answers = self.answerer.answer(
                batch, method, choices=asked[0].choices, max_new_tokens=self.length or task.longest
            )
            graded = zip(numbers, asked, readings, answers, strict=True)
            samples[name] = [self._sample(questions, *one) for one in graded]
        return samples

    def _sample(
        self, questions: QuestionSet, number: int, question: Question, reading: Reading, answer: Answer
    ) -> Sample:
        grade = questions.task.grade(question, answer.text, reading)
        sample = Sample(
            number, question.id, question.split, answer.text, grade.score, grade.valid, grade.iou, grade.box
        )
        if question.box is not None:
            sample = replace(sample, top=(question.box[1] + question.box[3]) / 2 < reading.size[1] / 2)
        report = answer.report
        if report is None or not report.pruned:
            return sample
        place = answer.place
        grids = [report.grid(stage=stage, batch=place) for stage in range(len(report.stages))]
        planes = report.record.layout.pictures[place][0]
        plane = planes[finest(planes)[0]]
        covers = inside(self.boxes.shown(reading.size), plane.box)
        tokens = report.tokens_per_layer[place]
        return replace(
            sample,
            tokens=sum(tokens) / len(tokens),
            flops=report.flops_ratios[place],
            shape=plane.shape,
            kept=tuple(pack(grid.numpy()) for grid in grids),
            covers=covers,
            target=question.box and _fractions(question.box, covers),
        )


def _fractions(box: Box, covers: Box) -> Box:
    """Return a box in fractions of what a grid covers."""
    left, top, right, bottom = covers
    x, y = right - left, bottom - top
    return (box[0] - left) / x, (box[1] - top) / y, (box[2] - left) / x, (box[3] - top) / y
