"""The result of a benchmark run: per task and in all, with intervals, as a table and as plain numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feathervlm.embedded.questions import best_blind
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.statistics import Bools, Interval, average, paired, wilson
from feathervlm.evaluation.tasks.base import Question


@dataclass(frozen=True, eq=False)
class TaskResult:
    """The answers to one task, in the order of its questions.

    Attributes:
        name: Name of the task.
        questions: The questions.
        samples: The graded answers.
        seconds: Time spent on answering.
        unpruned: Which answers of the unpruned run are right, of shape (n,); None if this is that run.
    """

    name: str
    questions: Sequence[Question] = field(repr=False)
    samples: Sequence[Sample] = field(repr=False)
    seconds: float
    unpruned: Bools | None = None

    @property
    def n(self) -> int:
        """The number of questions."""
        return len(self.samples)

    @property
    def answers(self) -> list[str]:
        """The answers as they were written."""
        return [sample.answer for sample in self.samples]

    @cached_property
    def right(self) -> Bools:
        """Which answers are right, of shape (n,); boxes from an IoU of 0.5 on."""
        return np.array([sample.right for sample in self.samples])

    @property
    def iou(self) -> NDArray[np.float64] | None:
        """IoU with the true box, 0 for invalid boxes, of shape (n,); None unless the task localizes."""
        return np.array([sample.iou for sample in self.samples]) if self.questions[0].box else None

    @property
    def top(self) -> Bools | None:
        """Whether the target's center lies in the top half, of shape (n,); None unless the task localizes."""
        return np.array([sample.top for sample in self.samples]) if self.questions[0].box else None

    @cached_property
    def blind(self) -> float:
        """The share that the best fixed answer to each wording gets right."""
        return best_blind([question.target for question in self.questions])

    @property
    def average_tokens(self) -> float | None:
        """Visual tokens per layer, averaged over layers and questions; None if nothing was pruned."""
        return average([sample.tokens for sample in self.samples])

    @property
    def flops_ratio(self) -> float | None:
        """FLOPs of the prefill over those of the unpruned one, averaged over questions; None if nothing was pruned."""
        return average([sample.flops for sample in self.samples])

    @property
    def kept_rows(self) -> list[list[float]]:
        """For each stage the share of the kept tokens in each row of the grid."""
        masks = [sample.masks() for sample in self.samples if sample.shape is not None]
        counts = [np.sum([mask.sum((0, 2)) for mask in stage], 0) for stage in zip(*masks, strict=True)]
        return [(count / max(count.sum(), 1)).tolist() for count in counts]

    @property
    def accuracy(self) -> Interval:
        """The share of right answers."""
        return wilson(self.right)

    @property
    def difference(self) -> Interval | None:
        """Accuracy minus the unpruned accuracy, on the same questions."""
        return _difference([self])

    def accuracy_at(self, threshold: float) -> Interval | None:
        """Return the share of boxes with at least this IoU; None unless the task localizes."""
        return None if self.iou is None else wilson(self.iou >= threshold)

    def half(self, top: bool) -> Interval | None:
        """Return the accuracy on targets in the top, or the bottom, half of the picture."""
        among = None if self.top is None else self.top == top
        return None if among is None or not among.any() else wilson(self.right[among])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        halves = {"top_half": self.half(True), "bottom_half": self.half(False)}
        shares = {"accuracy": self.accuracy, "difference": self.difference, "accuracy_at_0.25": self.accuracy_at(0.25)}
        mean_iou = {} if self.iou is None else {"mean_iou": round(float(self.iou.mean()), 4)}
        return {"n": self.n, **_numbers(shares | halves), **mean_iou, "best_blind": round(self.blind, 4)}


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

    @property
    def about(self) -> dict[str, Any]:
        """What was measured, as plain values."""
        return {name: getattr(self, name) for name in ("method", "model", "n", "seed", "unseen")}

    @classmethod
    def join(cls, results: "Sequence[BenchmarkResult]") -> "BenchmarkResult":
        """Return one result over the tasks of several of the same method, model and questions.

        Raises:
            ValueError: The results are of different runs.
        """
        if any(one.about != results[0].about for one in results):
            raise ValueError("results of different runs cannot be joined")
        return replace(results[0], tasks={name: task for one in results for name, task in one.tasks.items()})

    @property
    def average_tokens(self) -> float | None:
        """Visual tokens per layer, averaged over layers and tasks; None if nothing was pruned."""
        return average([task.average_tokens for task in self.tasks.values()])

    @property
    def flops_ratio(self) -> float | None:
        """FLOPs of the decoder's prefill over those of the unpruned one; None if nothing was pruned."""
        return average([task.flops_ratio for task in self.tasks.values()])

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
    def localization(self) -> Interval | None:
        """Mean difference to the unpruned run over the localization tasks; None if one of the two is missing."""
        return _difference([task for task in self.tasks.values() if task.iou is not None])

    @property
    def others(self) -> Interval | None:
        """Mean difference to the unpruned run over all other tasks."""
        return _difference([task for task in self.tasks.values() if task.iou is None])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        return {
            **self.about,
            "seconds": round(sum(task.seconds for task in self.tasks.values()), 2),
            "average_tokens": self.average_tokens and round(self.average_tokens, 2),
            "flops_ratio": self.flops_ratio and round(self.flops_ratio, 4),
            "kept_bottom_third": [round(share, 4) for share in self.kept_bottom_third],
            "mean_difference": _numbers({"localization": self.localization, "others": self.others}),
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }

    def __str__(self) -> str:
        lines = [f"{self.method}, {self.n} questions per task, 95 % intervals"]
        lines += [f"{'task':<12}{'accuracy':<24}{'to unpruned':<26}{'top half':>9}{'bottom':>8}{'blind':>10}"]
        for name, task in self.tasks.items():
            top, bottom = ("" if half is None else f"{half.value:.3f}" for half in map(task.half, (True, False)))
            change = "" if task.difference is None else str(task.difference)
            lines.append(f"{name:<12}{task.accuracy!s:<24}{change:<26}{top:>9}{bottom:>8}{task.blind:>10.3f}")
        for title, mean in (("localization", self.localization), ("others", self.others)):
            if mean is not None:
                lines.append(f"mean difference, {title}: {mean}")
        return "\n".join(lines)


def _difference(tasks: Sequence[TaskResult]) -> Interval | None:
    pairs = [(task.right, task.unpruned) for task in tasks if task.unpruned is not None]
    return paired(pairs) if pairs else None


def _numbers(intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    return {key: value.to_dict() for key, value in intervals.items() if value is not None}


def _bottom_third(rows: list[float]) -> float:
    """Return the share in the lower third of the rows; a row that the border cuts counts in part."""
    edge = len(rows) * 2 / 3
    return sum(share * min(max(row + 1 - edge, 0.0), 1.0) for row, share in enumerate(rows))
