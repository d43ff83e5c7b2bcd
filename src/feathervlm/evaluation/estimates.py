"""Numbers that carry their uncertainty: a value with draws from the Bayesian bootstrap over questions.

All numbers of a study are drawn with the same random weights on the same questions, so that a difference or a ratio of
two of them is a paired comparison by plain arithmetic. Knows arrays, nothing of what they measure.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feathervlm.evaluation.statistics import Bools, Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value and what it might have been with other questions of the same kind.

    Attributes:
        value: measured.
        draws: (rounds,), the same under random weights of the questions.
    """

    value: float
    draws: Floats

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        return self.interval.low

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval."""
        return self.interval.high

    @property
    def interval(self) -> Interval:
        """The value with its 95 % interval."""
        finite = self.draws[np.isfinite(self.draws)]
        low, high = np.quantile(finite, (0.025, 0.975)) if len(finite) else (np.nan, np.nan)
        return Interval(self.value, min(float(low), self.value), max(float(high), self.value))

    def __add__(self, other: "Estimate | float") -> "Estimate":
        return self._with(other, np.add)

    def __sub__(self, other: "Estimate | float") -> "Estimate":
        return self._with(other, np.subtract)

    def __rsub__(self, other: float) -> "Estimate":
        return Estimate(other - self.value, other - self.draws)

    def __mul__(self, other: "Estimate | float") -> "Estimate":
        return self._with(other, np.multiply)

    def __truediv__(self, other: "Estimate | float") -> "Estimate":
        return self._with(other, np.divide)

    def _with(self, other: "Estimate | float", operation: Callable[..., Floats]) -> "Estimate":
        value, draws = (other.value, other.draws) if isinstance(other, Estimate) else (other, other)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate(float(operation(np.float64(self.value), value)), operation(self.draws, draws))

    def __str__(self) -> str:
        return str(self.interval)

    def to_dict(self) -> dict[str, float | None]:
        """Rounded, ready for JSON; what is not a number is null."""
        interval = self.interval
        found = {"value": interval.value, "low": interval.low, "high": interval.high}
        return {key: round(float(number), 4) if np.isfinite(number) else None for key, number in found.items()}


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean, in which every estimate counts alike."""
    return Estimate(float(np.mean([one.value for one in estimates])), np.mean([one.draws for one in estimates], 0))


class Bootstrap:
    """Random weights of questions, task by task (Rubin, 1981: each question's weight is exponential).

    A bootstrap knows nothing but the questions that were asked: where ten answers are right it is certain, and where
    two runs differ on one question it is certain that one of them is better. For shares of right answers every task
    therefore gets one more question, which each run answers by the toss of a coin.

    Args:
        sizes: questions per task.
        rounds: how many draws.
        seed: of the draws.
    """

    def __init__(self, sizes: dict[str, int], rounds: int = 2000, seed: int = 0) -> None:
        self.rounds, self.seed = rounds, seed
        self._numbers = {task: number for number, task in enumerate(sizes)}
        self._weights = {
            task: np.random.default_rng([seed, number]).exponential(size=(rounds, size + 1))
            for number, (task, size) in enumerate(sizes.items())
        }

    def mean(self, task: str, values: NDArray[np.generic]) -> Estimate:
        """The mean over a task's questions.

        Args:
            task: which.
            values: (n,), of its questions; those that are not a number do not count.
        """
        numbers = np.asarray(values, np.float64)
        counts = np.isfinite(numbers)
        if not counts.any():
            return Estimate(np.nan, np.full(self.rounds, np.nan))
        weights = self._weights[task][:, :-1][:, counts]
        return Estimate(float(numbers[counts].mean()), weights @ numbers[counts] / weights.sum(1))

    def means(self, task: str, values: Floats, rounds: int) -> Floats:
        """The mean of vectors in the first rounds: (rounds, dim) of (n, dim)."""
        weights = self._weights[task][:rounds, :-1]
        return weights @ values / weights.sum(1, keepdims=True)

    def share(self, run: str, task: str, right: Bools, among: Bools | None = None) -> Estimate:
        """The share of right answers.

        Args:
            run: whose answers they are; two runs toss coins of their own.
            task: which.
            right: (n,), of its questions.
            among: (n,), only these questions count.
        """
        among = np.ones(len(right), bool) if among is None else among
        if not among.any():
            return Estimate(np.nan, np.full(self.rounds, np.nan))
        tossed = np.random.default_rng([self.seed, self._numbers[task], zlib.crc32(run.encode())])
        weights = self._weights[task][:, np.append(among, True)]
        total = weights[:, :-1] @ right[among].astype(np.float64) + weights[:, -1] * tossed.integers(
            2, size=self.rounds
        )
        return Estimate(float(right[among].mean()), total / weights.sum(1))
