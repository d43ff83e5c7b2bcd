"""Questions about pictures, grades of answers, and the base class of tasks.

A task reads its files as their publishers wrote them and holds no picture in memory. A subclass in a file of this
package that has a `name` is registered under it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from random import Random
from typing import Any, ClassVar, Literal

from PIL import Image

from feathervlm.core.boxes import BoxFormat, Size, iou
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.tasks.files import LocalFiles
from feathervlm.utils.pictures import check_background

Average = Literal["pooled", "splits"]
Kind = Literal["localization", "other"]
KINDS: tuple[Kind, ...] = ("localization", "other")
SHUFFLE = 21
"""Seed of the paper for the order of questions."""
BRIEF = "Answer the question using a single word or phrase."
"""Last line of open questions and of POPE."""
OUTSIDE = 1.0
"""Pixels by which a published box may exceed its picture."""
CHUNK = 40
"""Questions that are stored together; a run that is stopped loses at most this many answers of a method."""


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Attributes:
        id: Name that no other question of the task has, the same on every machine.
        prompt: Text of the question; for the localization benchmarks the description of the target.
        image: Path of the picture below the data directory; empty if the task draws it.
        target: What is right, as the task needs it: answers of people or the index of a choice.
        box: True box of a localization question, (left, top, right, bottom) in pixels; None for other questions.
        split: Part of the data set that the question belongs to; empty if there are no parts.
        choices: Answers to choose from; empty if the answer is written freely.
    """

    id: str
    prompt: str
    image: str
    target: Any = None
    box: Box | None = None
    split: str = ""
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """Whether the question asks for a box."""
        return "localization" if self.box is not None else "other"


@dataclass(frozen=True)
class Grade:
    """How good an answer is.

    Attributes:
        score: Number from 0 to 1.
        valid: Whether the answer names a box; None if the question asks for none.
        iou: IoU with the true box, 0 for an invalid box; None if the question asks for none.
        box: Box that the answer names, in pixels; None if there is no such box.
    """

    score: float
    valid: bool | None = None
    iou: float | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Reading:
    """How answers are read.

    Attributes:
        protocol: Rules of scoring, see `evaluation.metrics`.
        size: (width, height) of the picture in pixels.
        box: Function that returns the box in pixels that an answer names, None if it names no valid box.
    """

    protocol: Protocol
    size: Size
    box: Callable[[str], Box | None]

    def localize(self, answer: str, target: Box, threshold: float = 0.5) -> Grade:
        """Grade an answer by the IoU of its box with the true one, both in pixels."""
        box = self.box(answer)
        overlap = iou(box, target) if box else 0.0
        return Grade(float(overlap >= threshold), box is not None, overlap, box)


class Task(LocalFiles, ABC):
    """Base of all tasks.

    Class attributes:
        name: Name on the command line.
        average: Whether the score is that of all questions, or the mean of the scores of the splits.
        localizes: Whether the task asks for boxes.
        longest: Maximum number of new tokens of an answer; None for the default of the model.
        count: Number of questions in the paper; None if the paper does not have the task.
        needs_template: Whether prompts need a chat template, because they have no image placeholders.
    """

    name: str
    average: ClassVar[Average] = "pooled"
    localizes: bool = False
    longest: ClassVar[int | None] = 128
    count: ClassVar[int | None] = None
    needs_template: ClassVar[bool] = True

    @abstractmethod
    def read(self) -> Iterator[Question]:
        """Yield every question of the data set.

        Raises:
            PruningError: A file is missing or broken.
        """

    @abstractmethod
    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """Grade an answer."""

    @classmethod
    def more(cls, samples: Sequence[Sample]) -> dict[str, float]:
        """Return other numbers that are usual for the task, by name."""
        return {}

    def prompt(self, question: Question, protocol: Protocol, boxes: BoxFormat | None) -> str:
        """Return the prompt of a question, before the chat template.

        Args:
            question: The question.
            protocol: Rules of scoring, see `evaluation.metrics`.
            boxes: Format in which the model writes boxes, if it is known.
        """
        return question.prompt

    def questions(self, limit: int | None) -> list[Question]:
        """Return the questions in the order in which they are asked: split after split, in each as `shuffled`.

        A limit takes the first questions of every split, as the small sets of the paper do; those were shuffled in
        another order, so the questions differ.
        """
        return first_of_splits(self.shuffled(), limit)

    def shuffled(self) -> list[Question]:
        """Return all questions in the order of their ids, shuffled with the seed of the paper.

        Raises:
            PruningError: As `read`, or two questions have the same id.
        """
        questions = sorted(self.read(), key=lambda question: question.id)
        if not questions:
            raise PruningError(f"The files of {self.name} in {self.data} hold no question; {self.fetch}.")
        twice = next((one.id for one, other in pairwise(questions) if one.id == other.id), None)
        if twice is not None:
            raise PruningError(f"Two questions of {self.name} have the id {twice!r}; get its files again.")
        Random(SHUFFLE).shuffle(questions)
        return questions

    def upright(self, protocol: Protocol = "symmetric") -> bool:
        """Return whether EXIF data turn pictures: not for `paper`, nor where published boxes count stored pixels."""
        return protocol != "paper" and not self.localizes

    def open(self, question: Question, protocol: Protocol = "symmetric") -> Image.Image:
        """Open the picture of a question as RGB, see `picture`."""
        return self.picture(question.image, upright=self.upright(protocol))

    def check(self, questions: Sequence[Question]) -> None:
        """Read the pictures of questions, without decoding them, and compare boxes with their sizes.

        Raises:
            PruningError: A picture is missing or is none, or a box is outside of it.
        """
        for question in questions:
            if not question.image:
                continue
            width, height = self.facts(question.image, upright=self.upright()).size
            if question.box and not inside(question.box, (width, height), OUTSIDE):
                raise PruningError(
                    f"The box {question.box} of question {question.id!r} of {self.name} is outside of "
                    f"{question.image}, which has {width} x {height} pixels; {self.fetch}."
                )


def inside(box: Box, size: Size, tolerance: float) -> bool:
    """Return whether a box lies in a picture of (width, height), up to a tolerance in pixels."""
    left, top, right, bottom = box
    return min(left, top) >= -tolerance and right <= size[0] + tolerance and bottom <= size[1] + tolerance


def first_of_splits(questions: Iterable[Question], limit: int | None) -> list[Question]:
    """Return the first questions of every split, split after split in alphabetical order."""
    splits: dict[str, list[Question]] = {}
    for question in questions:
        own = splits.setdefault(question.split, [])
        if limit is None or len(own) < limit:
            own.append(question)
    return [question for split in sorted(splits) for question in splits[split]]


@dataclass(frozen=True, eq=False)
class QuestionSet:
    """A task with the questions to ask, in their order; it can be sent to another process."""

    task: Task
    questions: Sequence[Question]

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task.name

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """A hash of questions and right answers in their order, and one of the bytes of their pictures.

        Paths and times are not part of them.
        """
        asked, shown = hashlib.sha256(), hashlib.sha256()
        for question in self.questions:
            asked.update(repr(replace(question, image="")).encode("utf-8", "surrogatepass"))
            if question.image:
                picture = self.task.facts(question.image, upright=self.task.upright())
                shown.update(f"{picture.sha256} {check_background(self.task.background)}".encode())
        return {"questions": asked.hexdigest(), "pictures": shown.hexdigest()}

    @property
    def fingerprint(self) -> str:
        """The hash of everything that is asked and shown."""
        return hashlib.sha256(" ".join(self.fingerprints.values()).encode()).hexdigest()

    @cached_property
    def chunks(self) -> list[tuple[int, ...]]:
        """Indices of the questions that are stored together, each chunk of one split."""
        splits: dict[str, list[int]] = {}
        for number, question in enumerate(self.questions):
            splits.setdefault(question.split, []).append(number)
        return [tuple(part[start : start + CHUNK]) for part in splits.values() for start in range(0, len(part), CHUNK)]

    @property
    def splits(self) -> list[str]:
        """The split of every question."""
        return [question.split for question in self.questions]

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Every split, in the order of its first question, with its kind."""
        return {question.split: question.kind for question in self.questions}

    def item(self, number: int) -> tuple[Question, Image.Image]:
        """Return a question with its picture.

        Raises:
            PruningError: The picture cannot be opened.
        """
        question = self.questions[number]
        return question, self.task.open(question)
