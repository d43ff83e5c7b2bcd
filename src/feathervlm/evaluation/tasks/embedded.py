"""The embedded model's own benchmark: ten kinds of questions about drawn scenes, with nothing to fetch.

The questions are those of `feathervlm.embedded.benchmark`, asked in the same words and graded by the same rule.
"""

from collections.abc import Iterator

from PIL import Image

from feathervlm.embedded import questions as grading
from feathervlm.embedded.tasks import HELD_OUT, TASKS, sample
from feathervlm.evaluation.tasks.base import Grade, Question, Reading, Task

PER_SPLIT = 200
"""Questions without a limit, as many as the benchmark asks."""


class Embedded(Task):
    """Each of the ten tasks is a split; the score is their mean. A limit is questions per split, 200 without one.

    Only models with location tokens can answer: the embedded one, and those that were trained as it was.
    """

    name = "embedded"
    title = "embedded"
    average = "splits"
    longest = 5

    def read(self) -> Iterator[Question]:
        """As many as there are without a limit."""
        yield from self.questions(None)

    def questions(self, limit: int | None) -> list[Question]:
        """The first questions of the benchmark, in its order."""
        return [self._question(task, number) for task in TASKS for number in range(limit or PER_SPLIT)]

    def _question(self, task: str, number: int) -> Question:
        _, asked = sample(task, HELD_OUT, number)
        return Question(f"{task}-{number}", asked.text, "", asked, split=task)

    def open(self, question: Question) -> Image.Image:
        """Draw the scene."""
        task, _, number = question.id.rpartition("-")
        return sample(task, HELD_OUT, int(number))[0].image

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """As the benchmark does, in either protocol."""
        found = grading.grade(question.target, answer)
        if found.iou is None:
            return Grade(float(found.correct))
        return Grade(float(found.correct), grading.read_box(answer) is not None, found.iou)
