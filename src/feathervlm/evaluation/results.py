"""The answers of an evaluation as numbers: accuracy by task and split, the cost of pruning, the paper's averages.

All methods answered the same questions, and all are drawn with the same random weights of the questions, so that every
difference and ratio is a paired comparison. Knows samples and estimates; knows no model and no file.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feathervlm.evaluation.asking import Sample
from feathervlm.evaluation.estimates import Estimate, Floats, mean
from feathervlm.evaluation.tasks import SUITE, TASKS
from feathervlm.evaluation.tasks.base import Average
from feathervlm.inference.model_spec import UNPRUNED

ROUNDS = 2000
BLOCK = 1 << 24
"""So many random weights are held at a time: VQAv2 has 214354 questions."""


def shares(scores: Mapping[str, Floats], number: int, seed: int) -> dict[str, Estimate]:
    """The mean score of each run on the same questions, drawn as `Bootstrap.share` does, in little memory.

    Each run tosses a coin for one more, imaginary question, so that few questions make nothing certain.

    Args:
        scores: of each run, (n,) in [0, 1].
        number: of this set of questions among others, which have weights and coins of their own.
        seed: of the draws.
    """
    columns = np.stack(list(scores.values()), 1)
    count = len(columns)
    tosses = np.stack(
        [np.random.default_rng([seed, number, zlib.crc32(run.encode())]).integers(2, size=ROUNDS) for run in scores], 1
    )
    weighing = np.random.default_rng([seed, number])
    drawn = np.empty((ROUNDS, len(scores)))
    step = max(BLOCK // (count + 1), 1)
    for start in range(0, ROUNDS, step):
        rounds = slice(start, min(start + step, ROUNDS))
        weights = weighing.exponential(size=(rounds.stop - start, count + 1))
        drawn[rounds] = (weights[:, :-1] @ columns + weights[:, -1:] * tosses[rounds]) / weights.sum(1, keepdims=True)
    return {run: Estimate(float(mine.mean()), drawn[:, place]) for place, (run, mine) in enumerate(scores.items())}


@dataclass(frozen=True, eq=False)
class Row:
    """One method on one task, or the mean of several tasks.

    Attributes:
        task: its name, or that of the mean.
        title: how tables call it.
        method: its spec, or `UNPRUNED`.
        n: questions; 0 for a mean.
        score: of the answers, from 0 to 1.
        change: to the unpruned model, on the same questions; None for that itself.
        retention: the score over that of the unpruned model; None for that itself.
        invalid: the share of the answers to localization questions that name no box; None without such.
        tokens: visual tokens per layer, mean over layers and questions; None if nothing was pruned.
        flops: FLOPs of the prefill over those of the unpruned one, mean over questions; None if nothing was pruned.
        splits: the score on each part of the data set.
        more: other numbers that are usual for the task.
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
        """Rounded, ready for JSON."""
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


def rows(samples: Mapping[str, Mapping[str, Sequence[Sample]]], seed: int = 0) -> list[Row]:
    """All tasks under all methods, then the paper's averages of which all four tasks are there.

    Args:
        samples: for each task and method the answers, to the same questions in the same order; of the unpruned model,
            too.
        seed: of the intervals.
    """
    found = [row for task, runs in samples.items() for row in _task_rows(task, runs, seed)]
    for group, names in SUITE.items():
        if set(names) <= samples.keys():
            for method in samples[names[0]]:
                found.append(_mean(group, method, [row for row in found if row.method == method and row.task in names]))
    compared = {row.task: row.score for row in found if row.method == UNPRUNED}
    return [_compared(row, compared[row.task]) for row in found]


def _task_rows(task: str, runs: Mapping[str, Sequence[Sample]], seed: int) -> list[Row]:
    kind = TASKS[task]
    first = runs[UNPRUNED]
    names = sorted({sample.split for sample in first} - {""})
    parts = [np.array([sample.split == name for sample in first]) for name in names]
    scores = {method: np.array([sample.score for sample in mine], np.float64) for method, mine in runs.items()}
    drawn = [
        shares({method: mine[part] for method, mine in scores.items()}, number, seed)
        for number, part in enumerate([np.ones(len(first), bool), *parts])
    ]
    return [
        Row(
            task=task,
            title=kind.title,
            method=method,
            n=len(mine),
            score=_score(kind.average, [part[method] for part in drawn]),
            change=None,
            retention=None,
            invalid=_average([None if sample.valid is None else not sample.valid for sample in mine]),
            tokens=_average([sample.tokens for sample in mine]),
            flops=_average([sample.flops for sample in mine]),
            splits={name: part[method] for name, part in zip(names, drawn[1:], strict=True)},
            more=kind.more(mine),
        )
        for method, mine in runs.items()
    ]


def _score(average: Average, drawn: Sequence[Estimate]) -> Estimate:
    return drawn[0] if average == "pooled" else mean(drawn[1:])


def _mean(group: str, method: str, found: Sequence[Row]) -> Row:
    """The mean of some tasks, in which each counts alike."""
    costs = {name: _average([getattr(row, name) for row in found]) for name in ("invalid", "tokens", "flops")}
    score = mean([row.score for row in found])
    return Row(group, f"mean, {group}", method, 0, score, None, None, **costs, splits={}, more={})


def _compared(row: Row, unpruned: Estimate) -> Row:
    if row.method == UNPRUNED:
        return row
    return Row(**{**vars(row), "change": row.score - unpruned, "retention": row.score / unpruned})


def _average(numbers: Sequence[float | None]) -> float | None:
    given = [number for number in numbers if number is not None]
    return float(np.mean(given)) if given else None
