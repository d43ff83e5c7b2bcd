"""The result of a benchmark run: per task and in all, with intervals, as a table and as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feathervlm.embedded.questions import best_blind
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.statistics import Bools, Interval, paired, wilson
from feathervlm.evaluation.tasks.base import Question


@dataclass(frozen=True, eq=False)
class TaskResult:
    """The answers to one task.

    Attributes:
        name: Name of the task.
        right: Which answers are right, of shape (n,); boxes from an IoU of 0.5 on.
        unpruned: The same of the unpruned run on the same questions, of shape (n,); None if this is that run.
        iou: IoU with the true box, 0 for invalid boxes, of shape (n,); None unless the task localizes.
        top: Whether the center of the target lies in the top half of the picture, of shape (n,); None unless the task
            localizes.
        answers: Answers as they were written.
        blind: Share that the best fixed answer to each wording gets right.
        average_tokens: Visual tokens per layer, averaged over layers and questions; None if nothing was pruned.
        flops_ratio: FLOPs of the decoder's prefill over those of the unpruned one; None if nothing was pruned.
        kept_rows: For each stage the share of the kept tokens in each row of the grid.
        seconds: Time spent on answering.
    """

    name: str
    right: Bools
    unpruned: Bools | None
    iou: NDArray[np.float64] | None
    top: Bools | None
    answers: list[str] = field(repr=False)
    blind: float
    average_tokens: float | None
    flops_ratio: float | None
    kept_rows: list[list[float]]
    seconds: float

    @classmethod
    def of(
        cls,
        name: str,
        questions: Sequence[Question],
        samples: Sequence[Sample],
        unpruned: Bools | None,
        seconds: float,
    ) -> "TaskResult":
        """Return the result of graded answers to the questions of a task."""
        boxed = questions[0].box is not None
        tokens = [sample.tokens for sample in samples if sample.tokens is not None]
        flops = [sample.flops for sample in samples if sample.flops is not None]
        return cls(
            name=name,
            right=np.array([sample.right for sample in samples]),
            unpruned=unpruned,
            iou=np.array([sample.iou for sample in samples], float) if boxed else None,
            top=np.array([sample.top for sample in samples]) if boxed else None,
            answers=[sample.answer for sample in samples],
            blind=best_blind([question.target for question in questions]),
            average_tokens=float(np.mean(tokens)) if tokens else None,
            flops_ratio=float(np.mean(flops)) if flops else None,
            kept_rows=_kept_rows(samples),
            seconds=seconds,
        )

    @property
    def n(self) -> int:
        """The number of questions."""
        return len(self.right)

    @property
    def accuracy(self) -> Interval:
        """The share of right answers."""
        return wilson(self.right)

    @property
    def difference(self) -> Interval | None:
        """Accuracy minus the unpruned accuracy, on the same questions."""
        return None if self.unpruned is None else paired([(self.right, self.unpruned)])

    def accuracy_at(self, threshold: float) -> Interval | None:
        """Return the share of boxes with at least this IoU; None unless the task localizes."""
        return None if self.iou is None else wilson(self.iou >= threshold)

    def half(self, top: bool) -> Interval | None:
        """Return the accuracy on targets in the top, or the bottom, half of the picture."""
        if self.top is None or not (part := self.top == top).any():
            return None
        return wilson(self.right[part])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        intervals = {
            "accuracy": self.accuracy,
            "difference": self.difference,
            "accuracy_at_0.25": self.accuracy_at(0.25),
            "top_half": self.half(True),
            "bottom_half": self.half(False),
        }
        numbers = {key: value.to_dict() for key, value in intervals.items() if value is not None}
        mean_iou = {} if self.iou is None else {"mean_iou": round(float(self.iou.mean()), 4)}
        return {"n": self.n, **numbers, **mean_iou, "best_blind": round(self.blind, 4)}


@dataclass(frozen=True, eq=False)
class BenchmarkResult:
    """The run of a method over the tasks.

    Attributes:
        method: Spec of the method, or `unpruned`.
        model: Name of the model.
        n: Questions per task.
        seed: Seed of the questions.
        unseen: Whether sizes and counts are those that do not occur in training.
        tasks: Results by task.
    """

    method: str
    model: str
    n: int
    seed: int
    unseen: bool
    tasks: dict[str, TaskResult]

    @classmethod
    def join(cls, results: "Sequence[BenchmarkResult]") -> "BenchmarkResult":
        """Return one result over the tasks of several of the same method, model and questions.

        Raises:
            ValueError: The results are of different runs.
        """
        first = results[0]
        if len({(one.method, one.model, one.n, one.seed, one.unseen) for one in results}) > 1:
            raise ValueError("results of different runs cannot be joined")
        tasks = {name: task for one in results for name, task in one.tasks.items()}
        return cls(first.method, first.model, first.n, first.seed, first.unseen, tasks)

    @property
    def average_tokens(self) -> float | None:
        """Visual tokens per layer, averaged over layers and tasks; None if nothing was pruned."""
        return _mean([task.average_tokens for task in self.tasks.values()])

    @property
    def flops_ratio(self) -> float | None:
        """FLOPs of the decoder's prefill over those of the unpruned one; None if nothing was pruned."""
        return _mean([task.flops_ratio for task in self.tasks.values()])

    @property
    def kept_rows(self) -> list[list[float]]:
        """For each stage the share of the kept tokens in each row of the grid, averaged over tasks."""
        rows: list[list[float]] = np.mean([task.kept_rows for task in self.tasks.values()], 0).tolist()
        return rows

    @property
    def kept_bottom_third(self) -> list[float]:
        """For each stage the share of the kept tokens in the bottom third of the rows; a third if evenly spread."""
        return [_bottom_third(rows) for rows in self.kept_rows]

    @property
    def seconds(self) -> float:
        """Time spent on answering."""
        return sum(task.seconds for task in self.tasks.values())

    @property
    def localization(self) -> Interval | None:
        """Mean difference to the unpruned run over the localization tasks; None if one of the two is missing."""
        return self._difference([task for task in self.tasks.values() if task.iou is not None])

    @property
    def others(self) -> Interval | None:
        """Mean difference to the unpruned run over all other tasks."""
        return self._difference([task for task in self.tasks.values() if task.iou is None])

    def _difference(self, tasks: list[TaskResult]) -> Interval | None:
        pairs = [(task.right, task.unpruned) for task in tasks if task.unpruned is not None]
        return paired(pairs) if pairs else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        means = {"localization": self.localization, "others": self.others}
        return {
            "method": self.method,
            "model": self.model,
            "n": self.n,
            "seed": self.seed,
            "unseen": self.unseen,
            "seconds": round(self.seconds, 2),
            "average_tokens": self.average_tokens and round(self.average_tokens, 2),
            "flops_ratio": self.flops_ratio and round(self.flops_ratio, 4),
            "kept_bottom_third": [round(share, 4) for share in self.kept_bottom_third],
            "mean_difference": {key: value.to_dict() for key, value in means.items() if value is not None},
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }

    def __str__(self) -> str:
        lines = [f"{self.method}, {self.n} questions per task, 95 % intervals"]
        lines += [f"{'task':<12}{'accuracy':<24}{'to unpruned':<26}{'top half':>9}{'bottom':>8}{'blind':>10}"]
        for name, task in self.tasks.items():
            top, bottom = (f"{half.value:.3f}" if (half := task.half(is_top)) else "" for is_top in (True, False))
            change = "" if task.difference is None else str(task.difference)
            lines.append(f"{name:<12}{task.accuracy!s:<24}{change:<26}{top:>9}{bottom:>8}{task.blind:>10.3f}")
        for title, mean in (("localization", self.localization), ("others", self.others)):
            if mean is not None:
                lines.append(f"mean difference, {title}: {mean}")
        return "\n".join(lines)


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if known else None


def _kept_rows(samples: Sequence[Sample]) -> list[list[float]]:
    """Return for each stage the share of the kept tokens in each row of the grid."""
    masks = [sample.masks() for sample in samples if sample.shape is not None]
    counts = [np.sum([mask.sum((0, 2)) for mask in stage], 0) for stage in zip(*masks, strict=True)]
    return [(count / max(count.sum(), 1)).tolist() for count in counts]


def _bottom_third(rows: list[float]) -> float:
    """Return the share in the lower third of the rows; a row that the border cuts counts in part."""
    edge = len(rows) * 2 / 3
    return sum(share * min(max(row + 1 - edge, 0.0), 1.0) for row, share in enumerate(rows))
