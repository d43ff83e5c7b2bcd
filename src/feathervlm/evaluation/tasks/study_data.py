"""The questions of a study: where they come from, and when an answer is right.

A data set is a plain value that can be sent to another process, which then draws or opens its pictures by itself.
It knows nothing of models but the way in which boxes are written.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from PIL import Image

from feathervlm.core.boxes import BoxFormat, iou
from feathervlm.core.layout import Box
from feathervlm.embedded.questions import BOXES
from feathervlm.embedded.tasks import HELD_OUT, TASKS, sample

Kind = Literal["localization", "other"]
KINDS: tuple[Kind, ...] = ("localization", "other")
RIGHT = 0.5
"""The IoU from which on a box counts as right."""


@dataclass(frozen=True, eq=False)
class Item:
    """One question.

    Attributes:
        id: that no other question of the data set has.
        task: the name of its task.
        prompt: what is asked.
        picture: that is asked about.
        box: the right answer of a localization question, in pixels of the picture.
        answers: the right answers of any other question.
    """

    id: str
    task: str
    prompt: str
    picture: Image.Image
    box: Box | None = None
    answers: tuple[str, ...] = ()

    @property
    def in_top_half(self) -> bool | None:
        """Whether the target's centre lies in the top half of the picture; None if there is no target."""
        return None if self.box is None else (self.box[1] + self.box[3]) / 2 < self.picture.height / 2

    def grade(self, answer: str, read: Callable[[str], Box | None]) -> tuple[bool, float | None]:
        """Whether an answer is right and, for localization, its IoU with the true box (0 for an invalid box).

        Args:
            answer: what the model wrote.
            read: the box that an answer names, in pixels of the picture; None if it is invalid.
        """
        if self.box is None:
            return normal(answer) in map(normal, self.answers), None
        found = read(answer)
        overlap = iou(found, self.box) if found else 0.0
        return overlap >= RIGHT, overlap


def normal(answer: str) -> str:
    """An answer without case, outer spaces and a final full stop.

    >>> normal(" Two. ")
    'two'
    """
    return " ".join(answer.lower().split()).removesuffix(".")


class Data(ABC):
    """A data set; subclasses are frozen dataclasses that can be pickled."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What results call it."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever a question or a picture does."""

    @property
    @abstractmethod
    def kinds(self) -> dict[str, Kind]:
        """Every task, in order, with its kind."""

    @property
    def boxes(self) -> BoxFormat | None:
        """How answers write boxes, if the data set says so; None: as the model's family does."""
        return None

    @abstractmethod
    def tasks(self) -> list[str]:
        """The task of every question, in order."""

    @abstractmethod
    def item(self, number: int) -> Item:
        """The question of that number, with its picture.

        Raises:
            PruningError: if the picture cannot be opened.
        """


@dataclass(frozen=True)
class EmbeddedData(Data):
    """The embedded model's own tasks, on held-out scenes.

    Args:
        n: questions per task.
        seed: of the scenes and questions.
    """

    n: int
    seed: int

    @property
    def name(self) -> str:
        """Says so."""
        return "embedded"

    @property
    def fingerprint(self) -> str:
        """The seed: what is asked follows from it, however many questions there are."""
        return f"embedded scenes, seed {self.seed}"

    @property
    def kinds(self) -> dict[str, Kind]:
        """All ten tasks."""
        return {name: "localization" if task.localizes else "other" for name, task in TASKS.items()}

    @property
    def boxes(self) -> BoxFormat:
        """Location tokens."""
        return BOXES

    @cached_property
    def _names(self) -> list[str]:
        return [name for name in TASKS for _ in range(self.n)]

    def tasks(self) -> list[str]:
        """Task after task."""
        return self._names

    def item(self, number: int) -> Item:
        """Draw it."""
        task, question_number = self._names[number], number % self.n
        scene, question = sample(task, HELD_OUT + self.seed, question_number)
        box = None if question.box is None else tuple(map(float, question.box))
        answers = () if box else (question.answer,)
        # mypy does not see that a tuple mapped from four sides has four.
        return Item(f"{task}-{question_number}", task, question.text, scene.image, box, answers)  # type: ignore[arg-type]
