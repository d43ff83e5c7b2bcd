"""Numbers with their uncertainty: intervals of shares, and estimates with draws from the Bayesian bootstrap.

All numbers that are compared are drawn with the same random weights of the same questions, so that a difference or a
ratio of two estimates is a paired comparison.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
QUANTILE = 1.959964
"""Quantile of the normal distribution for 95 % intervals."""
BLOCK = 1 << 24
"""Random weights that are held in memory at a time; VQAv2 has 214354 questions."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float | None]:
        """Return the rounded numbers, ready for JSON; not a number becomes null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {key: round(float(number), 4) if np.isfinite(number) else None for key, number in numbers.items()}


def wilson(right: Bools) -> Interval:
    """Return the share of True with the score interval of Wilson (1927).

    >>> print(wilson(np.array([True] * 8 + [False] * 2)))
    0.800 [0.490, 0.943]
    """
    n, share, square = len(right), float(right.mean()), QUANTILE**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    reach = QUANTILE / (1 + square / n) * (share * (1 - share) / n + square / (4 * n * n)) ** 0.5
    return Interval(share, max(min(middle - reach, share), 0.0), min(max(middle + reach, share), 1.0))


def paired(pairs: Sequence[tuple[Bools, Bools]], seed: int = 0, rounds: int = 4000) -> Interval:
    """Return the difference of two shares measured on the same questions, first minus second.

    The interval comes from the posterior, with the prior of Jeffreys, of the shares of questions that only one side
    gets right. It is close to a paired bootstrap, but has a width where no answer differs.

    Args:
        pairs: For every task the answers of both sides, each of shape (n,). Every task counts alike.
        seed: Seed of the draws from the posterior.
        rounds: Number of draws.
    """
    rng = np.random.default_rng(seed)
    draws = np.zeros(rounds)
    value = 0.0
    for one, other in pairs:
        difference = one.astype(np.int8) - other.astype(np.int8)
        value += difference.mean() / len(pairs)
        worse, same, better = ((difference == outcome).sum() + 0.5 for outcome in (-1, 0, 1))
        shares = rng.dirichlet((worse, same, better), rounds)
        draws += (shares[:, 2] - shares[:, 0]) / len(pairs)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(value), min(float(low), value), max(float(high), value))


@dataclass(frozen=True, eq=False)
class Estimate:
    """A measured value with draws of it for other questions of the same kind.

    Attributes:
        value: The measured value.
        draws: The value under random weights of the questions, of shape (rounds,).
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
        """Return the rounded numbers, ready for JSON; not a number becomes null."""
        return self.interval.to_dict()


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean, in which every estimate counts alike."""
    return Estimate(float(np.mean([one.value for one in estimates])), np.mean([one.draws for one in estimates], 0))


def average(numbers: Sequence[float | None]) -> float | None:
    """Return the mean of the known numbers; None if there are none."""
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if known else None


class Bootstrap:
    """Random weights of questions, set by set: the Bayesian bootstrap (Rubin, 1981) with exponential weights.

    A bootstrap has no width where all answers are right, and where two methods differ on one question it is certain
    that one of them is better. For shares of right answers every set therefore gets one more question, which each
    method answers by the toss of a coin.

    Args:
        sizes: Number of questions of each set.
        rounds: Number of draws.
        seed: Seed of the draws.
    """

    def __init__(self, sizes: Mapping[str, int], rounds: int = 2000, seed: int = 0) -> None:
        self.rounds, self.seed = rounds, seed
        self._sizes, self._numbers = dict(sizes), {name: number for number, name in enumerate(sizes)}
        self._small: dict[str, Floats] = {}

    def mean(self, name: str, values: NDArray[np.generic]) -> Estimate:
        """Return the mean over the questions of a set.

        Args:
            name: Name of the set.
            values: Values of its questions, of shape (n,); what is not a number does not count.
        """
        numbers = np.asarray(values, np.float64)
        counts = np.isfinite(numbers)
        if not counts.any():
            return Estimate(np.nan, np.full(self.rounds, np.nan))
        drawn = [weights[:, :-1][:, counts] for weights in self._weights(name)]
        draws = np.concatenate([weights @ numbers[counts] / weights.sum(1) for weights in drawn])
        return Estimate(float(numbers[counts].mean()), draws)

    def means(self, name: str, values: Floats, rounds: int) -> Floats:
        """Return the mean of vectors (n, dim) in the first rounds, of shape (rounds, dim)."""
        blocks = (block[:rounds, :-1] for block in self._weights(name))
        return np.concatenate([block @ values / block.sum(1, keepdims=True) for block in blocks])[:rounds]

    def share(self, method: str, name: str, right: NDArray[np.generic], among: Bools | None = None) -> Estimate:
        """Return the mean score of one method, see `shares`."""
        return self.shares(name, {method: right}, among)[method]

    def shares(
        self, name: str, scores: Mapping[str, NDArray[np.generic]], among: Bools | None = None
    ) -> dict[str, Estimate]:
        """Return the mean score of each method on the same questions.

        Args:
            name: Name of the set of questions.
            scores: Scores from 0 to 1 of each method, of shape (n,). Each method tosses coins of its own.
            among: Questions that count, of shape (n,); None for all.
        """
        columns = np.stack([np.asarray(one, np.float64) for one in scores.values()], 1)
        among = np.ones(len(columns), bool) if among is None else among
        if not among.any():
            return {method: Estimate(np.nan, np.full(self.rounds, np.nan)) for method in scores}
        columns, present = columns[among], np.append(among, True)
        coins = np.stack([self._coins(name, method) for method in scores], 1)
        draws, start = np.empty((self.rounds, len(scores))), 0
        for block in self._weights(name):
            weights, rounds = block[:, present], slice(start, start + len(block))
            tossed = weights[:, -1:] * coins[rounds]
            draws[rounds] = (weights[:, :-1] @ columns + tossed) / weights.sum(1, keepdims=True)
            start += len(block)
        return {
            method: Estimate(float(columns[:, place].mean()), draws[:, place]) for place, method in enumerate(scores)
        }

    def _coins(self, name: str, method: str) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, self._numbers[name], zlib.crc32(method.encode())])
        return rng.integers(2, size=self.rounds)

    def _weights(self, name: str) -> Iterator[Floats]:
        """Yield the weights of a set in blocks of rounds, of shape (rounds, n + 1)."""
        if name in self._small:
            yield self._small[name]
            return
        rng, size = np.random.default_rng([self.seed, self._numbers[name]]), self._sizes[name] + 1
        step = max(BLOCK // size, 1)
        for start in range(0, self.rounds, step):
            weights = rng.exponential(size=(min(step, self.rounds - start), size))
            if step >= self.rounds:
                self._small[name] = weights
            yield weights
