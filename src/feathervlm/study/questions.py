"""The questions of a study: one task or several, numbered through."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.store import AnswerStore
from feathervlm.evaluation.tasks import TASKS, chosen
from feathervlm.evaluation.tasks.base import Kind, Question, QuestionSet
from feathervlm.evaluation.tasks.embedded import Embedded
from feathervlm.evaluation.tasks.jsonl import Jsonl
from feathervlm.utils.pictures import BACKGROUND


@dataclass(frozen=True, eq=False)
class StudyQuestions:
    """Sets of questions, with one number for every question.

    The report has a row for each split of the data sets. Its name is that of the split, with the name of the task in
    front if there are several tasks.
    """

    sets: Sequence[QuestionSet]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        data: Path = Path("data"),
        n: int = 200,
        seed: int = 0,
        background: str = BACKGROUND,
    ) -> "StudyQuestions":
        """Read the questions of tasks.

        Args:
            names: Names of tasks or groups as `feathervlm eval` takes them, or paths of JSONL files.
            data: Directory of the data sets.
            n: Questions per split; of a JSONL file every question is asked.
            seed: Seed of the embedded questions.
            background: Colour under transparent parts of pictures.

        Raises:
            PruningError: There is no such task, or a file is missing or broken.
        """
        sets: dict[str, QuestionSet] = {}
        for name in names:
            own = name not in TASKS and os.path.isfile(name)  # a file of questions may have any suffix
            for task in [Jsonl(Path(name))] if own else chosen([name], data):
                if task.name in sets:
                    if own:
                        raise PruningError(f"Two files of questions are called {task.name}; rename one.")
                    continue
                if isinstance(task, Embedded):
                    task = Embedded(n=n, seed=seed)
                task.background = background
                questions = QuestionSet(task, task.questions(None if isinstance(task, Jsonl) else n))
                sets[task.name] = questions
        if not sets:
            raise PruningError("No task is named; give --data embedded.")
        return cls(list(sets.values()))

    @cached_property
    def tasks(self) -> list[str]:
        """The row in the report of every question."""
        return [self._row(one, question) for one in self.sets for question in one.questions]

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The kind of every row, in the order of the report."""
        return {self._row(one, question): question.kind for one in self.sets for question in one.questions}

    def item(self, number: int) -> tuple[Question, Image.Image]:
        """Return a question with its picture.

        Raises:
            PruningError: The picture cannot be opened.
        """
        part, index = self.locate(number)
        return part.item(index)

    def locate(self, number: int) -> tuple[QuestionSet, int]:
        """Return the set of a question and the index in this set."""
        part = next(place for place, end in enumerate(self._ends) if number < end)
        return self.sets[part], number - self._starts[part]

    def read(self, store: AnswerStore, method: str) -> dict[int, Sample]:
        """Return the stored answers of a method by number of the question."""
        return {
            start + index: sample
            for start, part in zip(self._starts, self.sets, strict=True)
            for index, sample in store.read(part, method).items()
        }

    def describe(self) -> dict[str, Any]:
        """Return name, fingerprint and number of questions of each row as plain values."""
        return {
            "name": ", ".join(one.name for one in self.sets),
            "fingerprint": " ".join(one.fingerprint for one in self.sets),
            "questions": dict(Counter(self.tasks)),
        }

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(one.questions) for one in self.sets))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *self._ends[:-1]]

    def _row(self, part: QuestionSet, question: Question) -> str:
        return " ".join(filter(None, (part.name if len(self.sets) > 1 else "", question.split))) or part.name
