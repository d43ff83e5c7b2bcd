"""The embedded model's own questions: ten kinds of questions about drawn scenes, without any files.

`feathervlm eval`, `feathervlm study` and `feathervlm.embedded.benchmark` ask the same questions in the same words.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image

from feathervlm.embedded import questions as scene_questions
from feathervlm.embedded.questions import SceneQuestion
from feathervlm.embedded.scenes import Scene
from feathervlm.embedded.tasks import HELD_OUT, TASKS, sample
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.tasks.base import Grade, Question, Reading, Task


@lru_cache(maxsize=512)
def _sample(split: str, seed: int, number: int, unseen: bool) -> tuple[Scene, SceneQuestion]:
    return sample(split, seed, number, unseen=unseen)


class Embedded(Task):
    """Ten kinds of questions, each of which is a split; the score is the mean over splits.

    Only models with location tokens can answer: the embedded one, and those of other training runs.

    Args:
        data: Not used; the scenes are drawn.
        n: Questions per split.
        seed: Seed of the held-out scenes.
        unseen: Whether to draw object sizes and counts that do not occur in training.
        splits: Kinds of questions to ask.
    """

    name = "embedded"
    title = "embedded"
    average = "splits"
    longest = 5

    def __init__(
        self,
        data: Path = Path(),
        n: int = 200,
        seed: int = 0,
        *,
        unseen: bool = False,
        splits: tuple[str, ...] = tuple(TASKS),
    ) -> None:
        super().__init__(data)
        self.n, self.seed, self.unseen, self.splits = n, seed, unseen, splits

    def read(self) -> Iterator[Question]:
        yield from self.questions(None)

    def questions(self, limit: int | None) -> list[Question]:
        """Return the first questions of each split; without a limit there are `n` per split."""
        return [self._question(split, number) for split in self.splits for number in range(limit or self.n)]

    def _question(self, split: str, number: int) -> Question:
        _, asked = _sample(split, HELD_OUT + self.seed, number, self.unseen)
        box = None
        if asked.box is not None:
            left, top, right, bottom = map(float, asked.box)
            box = left, top, right, bottom
        return Question(f"{split}-{number}", asked.text, "", asked, box, split)

    def open(self, question: Question, protocol: Protocol = "symmetric") -> Image.Image:
        """Draw the scene of a question."""
        split, _, number = question.id.rpartition("-")
        return _sample(split, HELD_OUT + self.seed, int(number), self.unseen)[0].image

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """Grade as the benchmark does, in either protocol."""
        right, overlap = scene_questions.grade(question.target, answer)
        if overlap is None:
            return Grade(float(right))
        box = scene_questions.read_box(answer)
        return Grade(float(right), box is not None, overlap, box)
