"""One task put to one model: questions asked in batches, answers graded, reports added up.

Knows how to talk to a model through its processor; knows nothing of methods, or of what is done with the result.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from feathervlm.embedded.questions import Question, grade, iou
from feathervlm.embedded.scenes import SIDE, Scene
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.engine.pruning import Pruning
from feathervlm.engine.report.report import Report
from feathervlm.evaluation.embedded_result import Measured, Result, TaskResult
from feathervlm.inference import prompts

Step = Callable[[str, int], None]
"""Told what is measured and how many more questions are answered."""


@dataclass(frozen=True, eq=False)
class Subject:
    """Which model answers; `name` tells it from others."""

    model: Any
    processor: Any
    name: str


@dataclass(frozen=True)
class Exam:
    """Which questions are asked, how many at a time."""

    n: int
    seed: int
    unseen: bool
    batch: int


@dataclass(frozen=True, eq=False)
class Pruned:
    """What prunes during a run, and the run to compare it with."""

    method: str
    pruning: Pruning
    unpruned: Result


def run_task(subject: Subject, exam: Exam, task: str, step: Step, pruned: Pruned | None = None) -> Measured:
    """One task's questions, answered and graded."""
    pairs = [sample(task, HELD_OUT + exam.seed, i, unseen=exam.unseen) for i in range(exam.n)]
    answers: list[str] = []
    tally = Tally()
    begun = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, exam.n, exam.batch):
            part = pairs[start : start + exam.batch]
            answers += answer(subject.model, subject.processor, part)
            if pruned is not None and pruned.pruning.report.pruned:
                tally.add(pruned.pruning.report, len(part))
            step(pruned.method if pruned else "unpruned", len(part))
    seconds = time.perf_counter() - begun
    result = _grade(task, pairs, answers, pruned.unpruned.tasks[task].right if pruned else None)
    return Measured(result, *tally.means(), seconds)


class Tally:
    """What the reports of a run say, added up over batches."""

    def __init__(self) -> None:
        self.questions, self.tokens, self.flops = 0, 0.0, 0.0
        self.kept: list[Counter[int]] = []
        self.rows = 0

    def add(self, report: Report, questions: int) -> None:
        """Take the report of one batch."""
        self.questions += questions
        self.tokens += report.average_tokens * questions
        self.flops += report.flops_ratio * questions
        self.kept = self.kept or [Counter() for _ in report.stages]
        _, self.rows, columns = report.grid().shape
        for count, stage in zip(self.kept, report.stages, strict=True):
            for indices in stage.kept:
                count.update((indices // columns).tolist())

    def means(self) -> tuple[float | None, float | None, list[list[float]]]:
        """Average tokens, FLOPs ratio, and for each stage the share of the kept tokens in each row."""
        if not self.questions:
            return None, None, []
        shares = [[count[row] / max(count.total(), 1) for row in range(self.rows)] for count in self.kept]
        return self.tokens / self.questions, self.flops / self.questions, shares


def answer(model: Any, processor: Any, pairs: Sequence[tuple[Scene, Question]]) -> list[str]:
    """What the model answers, greedily, to questions about scenes."""
    asked = [(scene.image, question.text) for scene, question in pairs]
    inputs = prompts.prepare_all(processor, asked).to(model.device, dtype=model.dtype)
    output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def _grade(
    name: str, pairs: list[tuple[Scene, Question]], answers: list[str], unpruned: np.ndarray | None
) -> TaskResult:
    grades = [grade(question, text) for (_, question), text in zip(pairs, answers, strict=True)]
    boxes = [question.box for _, question in pairs if question.box]
    return TaskResult(
        name=name,
        right=np.array([one.correct for one in grades]),
        unpruned=unpruned,
        iou=np.array([one.iou for one in grades], float) if boxes else None,
        top=np.array([(box[1] + box[3]) / 2 < SIDE / 2 for box in boxes]) if boxes else None,
        answers=answers,
        blind=best_blind([question for _, question in pairs]),
    )


def best_blind(questions: Sequence[Question]) -> float:
    """The share that the best fixed answer to each wording gets right, without a look at the picture.

    The answers are chosen on one half of the questions and tried on the other, both ways. For boxes they are chosen
    among the boxes of that half, by how many others they overlap with IoU 0.5.
    """
    right = 0
    for half in (0, 1):
        known, asked = questions[half::2], questions[1 - half :: 2]
        for kind in {question.kind for question in asked}:
            mine = [question for question in asked if question.kind == kind]
            examples = [question for question in known if question.kind == kind]
            boxes = [question.box for question in examples if question.box]
            if boxes:
                guess = max(boxes[:100], key=lambda box: sum(iou(box, other) >= 0.5 for other in boxes))
                right += sum(iou(guess, question.box) >= 0.5 for question in mine if question.box)
            elif examples:
                word = Counter(question.answer for question in examples).most_common(1)[0][0]
                right += sum(question.answer == word for question in mine)
    return right / len(questions)
