"""The answers of an evaluation as numbers: accuracy by task and split, cost of pruning, averages of the paper.

All methods answered the same questions and are drawn with the same random weights of the questions, so that every
difference and ratio is a paired comparison.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.statistics import Bootstrap, Estimate, average, mean
from feathervlm.evaluation.tasks import SUITE, TASKS
from feathervlm.evaluation.tasks.base import Task
from feathervlm.inference.model_spec import UNPRUNED


@dataclass(frozen=True, eq=False)
class Row:
    """One method on one task, or the mean of several tasks.

    Attributes:
        task: Name of the task or of the mean.
        title: Title in tables.
        method: Spec of the method, or `UNPRUNED`.
        n: Number of questions; 0 for a mean.
        score: Score of the answers, from 0 to 1.
        change: Difference to the unpruned model on the same questions; None for the unpruned model.
        retention: Score over that of the unpruned model; None for the unpruned model.
        invalid: Share of the answers to localization questions that name no box; None without such questions.
        tokens: Visual tokens per layer, averaged over layers and questions; None if nothing was pruned.
        flops: FLOPs of the prefill over those of the unpruned one, averaged over questions; None if nothing was pruned.
        splits: Score on each part of the data set.
        more: Other numbers that are usual for the task.
    """

    task: str
    title: str
    method: str
    n: int
    score: Estimate
    change: Estimate | None
    retention: Estimate | None
    invalid: float | None
    tokens: float | None
    flops: float | None
    splits: dict[str, Estimate]
    more: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the rounded numbers, ready for JSON."""
        return {
            "task": self.task,
            "method": self.method,
            "n": self.n,
            "score": self.score.to_dict(),
            "change": self.change and self.change.to_dict(),
            "retention": self.retention and self.retention.to_dict(),
            "no_valid_box": self.invalid if self.invalid is None else round(self.invalid, 4),
            "average_tokens": self.tokens if self.tokens is None else round(self.tokens, 2),
            "flops_ratio": self.flops if self.flops is None else round(self.flops, 4),
            "splits": {name: one.to_dict() for name, one in self.splits.items()},
            "more": {name: round(number, 4) for name, number in self.more.items()},
        }


def rows(
    samples: Mapping[str, Mapping[str, Sequence[Sample]]],
    seed: int = 0,
    tasks: Mapping[str, Task | type[Task]] = TASKS,
) -> list[Row]:
    """Return all tasks under all methods, then the averages of the paper whose four tasks are all there.

    Args:
        samples: For each task and method the answers to the same questions in the same order, also of the unpruned
            model.
        seed: Seed of the intervals.
        tasks: The tasks by name.
    """
    found = [row for task, runs in samples.items() for row in _task_rows(task, tasks[task], runs, seed)]
    for group, names in SUITE.items():
        if set(names) <= samples.keys():
            for method in samples[names[0]]:
                found.append(_mean(group, method, [row for row in found if row.method == method and row.task in names]))
    unpruned = {row.task: row.score for row in found if row.method == UNPRUNED}
    return [_compared(row, unpruned[row.task]) for row in found]


def _task_rows(name: str, task: Task | type[Task], runs: Mapping[str, Sequence[Sample]], seed: int) -> list[Row]:
    first = runs[UNPRUNED]
    parts = {"": np.ones(len(first), bool)}
    for split in sorted({sample.split for sample in first} - {""}):
        parts[split] = np.array([sample.split == split for sample in first])
    scores = {method: np.array([sample.score for sample in own], np.float64) for method, own in runs.items()}
    bootstrap = Bootstrap({split: int(part.sum()) for split, part in parts.items()}, seed=seed)
    drawn = {
        split: bootstrap.shares(split, {method: own[part] for method, own in scores.items()})
        for split, part in parts.items()
    }
    whole = drawn.pop("")
    return [
        Row(
            task=name,
            title=task.title,
            method=method,
            n=len(own),
            score=whole[method] if task.average == "pooled" else mean([part[method] for part in drawn.values()]),
            change=None,
            retention=None,
            invalid=average([None if sample.valid is None else not sample.valid for sample in own]),
            tokens=average([sample.tokens for sample in own]),
            flops=average([sample.flops for sample in own]),
            splits={split: part[method] for split, part in drawn.items()},
            more=task.more(own),
        )
        for method, own in runs.items()
    ]


def _mean(group: str, method: str, found: Sequence[Row]) -> Row:
    """Return the mean of some tasks, in which each counts alike."""
    costs = {name: average([getattr(row, name) for row in found]) for name in ("invalid", "tokens", "flops")}
    score = mean([row.score for row in found])
    return Row(group, f"mean, {group}", method, 0, score, None, None, **costs, splits={}, more={})


def _compared(row: Row, unpruned: Estimate) -> Row:
    if row.method == UNPRUNED:
        return row
    return replace(row, change=row.score - unpruned, retention=row.score / unpruned)
