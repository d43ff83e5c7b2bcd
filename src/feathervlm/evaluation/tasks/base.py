"""What a task is: questions about pictures in local files, and how an answer counts.

A subclass in a file of this package registers itself under its name. It reads the files as their publishers wrote them
and keeps no picture. Knows nothing of models but the way in which one writes boxes, and nothing of runs.
"""

import hashlib
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, ClassVar, Literal

from PIL import Image

from feathervlm.core.boxes import BoxFormat, Size, iou
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.evaluation.metrics import Protocol, grounding
from feathervlm.evaluation.tasks.files import LocalFiles

Average = Literal["pooled", "splits"]
SHUFFLE = 21
"""The paper's seed for the order of questions."""
BRIEF = "Answer the question using a single word or phrase."
"""What open questions and POPE end with."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: that no other question of the task has, the same on every machine.
        prompt: what is asked; of a localization question the description of what to find.
        image: the picture's path below the data directory; empty if the task draws it.
        target: what is right: texts of people, the number of a choice, a box in pixels, as the task has it.
        split: which part of the data set it is of; empty if there are none.
        choices: the answers to choose from; none if the answer is written freely.
    """

    id: str
    prompt: str
    image: str
    target: Any
    split: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grade:
    """How an answer did.

    Attributes:
        score: from 0 to 1.
        valid: whether it names a box; None if it need not.
        iou: with the true box, 0 for an invalid one; None if there is none.
    """

    score: float
    valid: bool | None = None
    iou: float | None = None


class Answered(typing.Protocol):
    """An answer that was graded, as far as a task wants to know."""

    @property
    def answer(self) -> str:
        """As written, or the choice."""
        ...

    @property
    def score(self) -> float:
        """From 0 to 1."""
        ...


@dataclass(frozen=True)
class Reading:
    """How answers are taken.

    Attributes:
        protocol: see `scoring`.
        size: of the picture in pixels.
        box: the box in pixels that an answer names in the model's own format, None if it is invalid.
    """

    protocol: Protocol
    size: Size
    box: Callable[[str], Box | None]


class Task(LocalFiles, ABC):
    """Base of all tasks.

    Class attributes:
        name: how the command line calls it.
        average: whether the score is that of all questions, or the mean of those of the splits.
        localizes: whether it asks for boxes.
        longest: new tokens of an answer at most.
        count: how many questions the paper asked; None if it did not.
    """

    name: ClassVar[str]
    average: ClassVar[Average] = "pooled"
    localizes: ClassVar[bool] = False
    longest: ClassVar[int] = 128
    count: ClassVar[int | None] = None

    @abstractmethod
    def read(self) -> Iterator[Question]:
        """Every question of the data set.

        Raises:
            PruningError: if a file is missing or not what it should be.
        """

    @abstractmethod
    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """How an answer did."""

    @classmethod
    def more(cls, samples: Sequence[Answered]) -> dict[str, float]:
        """Other numbers that are usual for the task, by name."""
        return {}

    def prompt(self, question: Question, protocol: Protocol, written: BoxFormat | None) -> str:
        """What the model is asked, before the chat template.

        Args:
            question: which.
            protocol: see `scoring`.
            written: how the model writes boxes, if it is known.
        """
        return question.prompt

    def questions(self, limit: int | None) -> list[Question]:
        """The questions to ask, in the order in which they are asked.

        Split after split, in each the order of `shuffled`; a limit takes the first so many of every split, as the
        paper's small sets do. Those were shuffled in another order, so they are not the same questions.

        Raises:
            PruningError: as `shuffled`.
        """
        return first_of_splits(self.shuffled(), limit)

    def shuffled(self) -> list[Question]:
        """All questions in the order of their ids, shuffled with the paper's seed.

        Raises:
            PruningError: as `read`, and if two questions have the same id.
        """
        try:
            found = sorted(self.read(), key=lambda question: question.id)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise PruningError(
                f"The files of {self.name} in {self.data} are not written as they should be ({error!r}); {self.fetch}."
            ) from error
        if not found:
            raise PruningError(f"The files of {self.name} in {self.data} hold no question; {self.fetch}.")
        twice = next((one.id for one, other in pairwise(found) if one.id == other.id), None)
        if twice is not None:
            raise PruningError(f"Two questions of {self.name} have the id {twice!r}; get its files again.")
        Random(SHUFFLE).shuffle(found)
        return found

    def open(self, question: Question) -> Image.Image:
        """The picture as RGB.

        Raises:
            PruningError: if it cannot be opened.
        """
        return self.picture(question.image)

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse a data set whose pictures are not there, by the first of each folder.

        Raises:
            PruningError: if one is missing.
        """
        for image in {question.image.rpartition("/")[0]: question.image for question in reversed(questions)}.values():
            if image and not (self.data / image).exists():
                raise self.missing(self.data / image)


def first_of_splits(questions: Iterable[Question], limit: int | None) -> list[Question]:
    """The first so many questions of every split, split after split; splits in alphabetical order."""
    splits: dict[str, list[Question]] = {}
    for question in questions:
        mine = splits.setdefault(question.split, [])
        if limit is None or len(mine) < limit:
            mine.append(question)
    return [question for split in sorted(splits) for question in splits[split]]


def fingerprint(questions: Sequence[Question]) -> str:
    """A hash of questions and what is right, in their order; the pictures' bytes are not in it."""
    whole = hashlib.sha256()
    for question in questions:
        whole.update(repr(question).encode())
    return whole.hexdigest()


class Choice(Task):
    """A task whose answer is chosen by the probability of its first token."""

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """Right or wrong."""
        return Grade(float(answer == question.choices[question.target]))


class Localization(Task):
    """A task whose answer is a box.

    Class attributes:
        threshold: the IoU from which on a box counts.
    """

    localizes = True
    threshold: ClassVar[float] = 0.5

    def prompt(self, question: Question, protocol: Protocol, written: BoxFormat | None) -> str:
        """The paper's words, or those in which the model's family asks for boxes."""
        if protocol == "paper":
            return grounding.ask(question.prompt)
        assert written is not None, "the runner refuses models whose boxes are not known"
        return written.ask(question.prompt)

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """By IoU; an invalid box is wrong.

        `paper` compares fractions with the true box rounded to two decimals, `symmetric` pixels with the true box.
        """
        if reading.protocol == "paper":
            found, true = grounding.literal_box(answer), grounding.rounded(question.target, reading.size)
            shared = grounding.overlap(found, true) if found else 0.0
        else:
            found = reading.box(answer)
            shared = iou(found, question.target) if found else 0.0
        return Grade(float(shared >= self.threshold), found is not None, shared)


def letters(question: str, choices: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """A multiple-choice prompt and the letters to choose from.

    >>> print(letters("How many?", ["0", "1"])[0])
    How many?
    A. 0
    B. 1
    Answer with the option's letter from the given choices directly.
    """
    marked = [chr(ord("A") + number) for number in range(len(choices))]
    lines = [f"{letter}. {choice}" for letter, choice in zip(marked, choices, strict=True)]
    ending = "Answer with the option's letter from the given choices directly."
    return "\n".join([question, *lines, ending]), tuple(marked)
