"""What a benchmark run found: per task and in all, with intervals, as a table and as plain numbers.

Knows answers that are right or wrong; knows no model and no scene.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feathervlm.evaluation.statistics import Bools, Interval, paired, wilson


@dataclass(frozen=True, eq=False)
class TaskResult:
    """One task's answers.

    Attributes:
        name: of the task.
        right: (n,) which answers are right; boxes from IoU 0.5 on.
        unpruned: (n,) the same of the unpruned run on the same questions; None if this is that run.
        iou: (n,) IoU with the true box, 0 for invalid boxes; None unless the task localizes.
        top: (n,) whether the target's centre lies in the top half of the picture; None unless the task localizes.
        answers: as written.
        blind: the share that the best fixed answer to each wording gets right.
    """

    name: str
    right: Bools
    unpruned: Bools | None
    iou: NDArray[np.float64] | None
    top: Bools | None
    answers: list[str] = field(repr=False)
    blind: float

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
        """The share of boxes with at least this IoU; None unless the task localizes."""
        return None if self.iou is None else wilson(self.iou >= threshold)

    def half(self, top: bool) -> Interval | None:
        """The accuracy on targets in the top, or the bottom, half of the picture."""
        if self.top is None or not (mine := self.top == top).any():
            return None
        return wilson(self.right[mine])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        found = {
            "accuracy": self.accuracy,
            "difference": self.difference,
            "accuracy_at_0.25": self.accuracy_at(0.25),
            "top_half": self.half(True),
            "bottom_half": self.half(False),
        }
        numbers = {key: value.to_dict() for key, value in found.items() if value is not None}
        mean_iou = {} if self.iou is None else {"mean_iou": round(float(self.iou.mean()), 4)}
        return {"n": self.n, **numbers, **mean_iou, "best_blind": round(self.blind, 4)}


@dataclass(frozen=True, eq=False)
class Measured:
    """A task's answers, and what the reports said meanwhile; see `Result`."""

    task: TaskResult
    average_tokens: float | None
    flops_ratio: float | None
    kept_rows: list[list[float]]
    seconds: float


@dataclass(frozen=True, eq=False)
class Result:
    """A method's run over the tasks.

    Attributes:
        method: its spec, or `unpruned`.
        model: which model answered.
        n: questions per task.
        seed: of the questions.
        unseen: whether sizes and counts were those not seen in training.
        tasks: results by task.
        average_tokens: visual tokens per layer, averaged over layers and questions; None if nothing was pruned.
        flops_ratio: FLOPs of the decoder's prefill over those of the unpruned one; None if nothing was pruned.
        kept_rows: for each stage the share of the kept tokens that lies in each row of the grid.
        seconds: spent on answering.
    """

    method: str
    model: str
    n: int
    seed: int
    unseen: bool
    tasks: dict[str, TaskResult]
    average_tokens: float | None
    flops_ratio: float | None
    kept_rows: list[list[float]]
    seconds: float

    @classmethod
    def of(cls, method: str, model: str, n: int, seed: int, unseen: bool, found: Mapping[str, Measured]) -> "Result":
        """The result over several tasks."""
        measured = list(found.values())
        tokens = [one.average_tokens for one in measured if one.average_tokens is not None]
        ratios = [one.flops_ratio for one in measured if one.flops_ratio is not None]
        return cls(
            method,
            model,
            n,
            seed,
            unseen,
            {name: one.task for name, one in found.items()},
            float(np.mean(tokens)) if tokens else None,
            float(np.mean(ratios)) if ratios else None,
            np.mean([one.kept_rows for one in measured], 0).tolist(),
            sum(one.seconds for one in measured),
        )

    @classmethod
    def join(cls, results: "Sequence[Result]") -> "Result":
        """One result over the tasks of several, which must be of the same method, model and questions.

        Raises:
            ValueError: they are not.
        """
        first = results[0]
        if len({(one.method, one.model, one.n, one.seed, one.unseen) for one in results}) > 1:
            raise ValueError("results of different runs cannot be joined")
        found = {
            name: Measured(task, one.average_tokens, one.flops_ratio, one.kept_rows, one.seconds / len(one.tasks))
            for one in results
            for name, task in one.tasks.items()
        }
        return cls.of(first.method, first.model, first.n, first.seed, first.unseen, found)

    @property
    def localization(self) -> Interval | None:
        """Mean difference to the unpruned run over the localization tasks; None without one or the other."""
        return self._difference([task for task in self.tasks.values() if task.iou is not None])

    @property
    def others(self) -> Interval | None:
        """Mean difference to the unpruned run over all other tasks."""
        return self._difference([task for task in self.tasks.values() if task.iou is None])

    @property
    def kept_bottom_third(self) -> list[float]:
        """For each stage the share of the kept tokens in the bottom third of the rows; a third if evenly spread."""
        return [_bottom_third(rows) for rows in self.kept_rows]

    def _difference(self, tasks: list[TaskResult]) -> Interval | None:
        pairs = [(task.right, task.unpruned) for task in tasks if task.unpruned is not None]
        return paired(pairs) if pairs else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
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


def _bottom_third(rows: list[float]) -> float:
    """The share of what lies in the lower third of the rows; a row that the border cuts counts in part."""
    edge = len(rows) * 2 / 3
    return sum(share * min(max(row + 1 - edge, 0.0), 1.0) for row, share in enumerate(rows))
