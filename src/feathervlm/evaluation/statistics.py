"""Intervals around measured shares: how sure a number is. Knows arrays of right and wrong answers, nothing else."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
QUANTILE = 1.959964
"""Of the normal distribution, for 95 % intervals."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float]:
        """Rounded to what may be reported."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def wilson(right: Bools) -> Interval:
    """The share of True with Wilson's score interval (Wilson, 1927).

    >>> print(wilson(np.array([True] * 8 + [False] * 2)))
    0.800 [0.490, 0.943]
    """
    n, share, square = len(right), float(right.mean()), QUANTILE**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    reach = QUANTILE / (1 + square / n) * (share * (1 - share) / n + square / (4 * n * n)) ** 0.5
    return Interval(share, max(min(middle - reach, share), 0.0), min(max(middle + reach, share), 1.0))


def paired(pairs: list[tuple[Bools, Bools]], seed: int = 0, rounds: int = 4000) -> Interval:
    """The difference of two shares measured on the same questions, first minus second.

    The interval comes from the posterior of the shares of questions that one side alone gets right, with Jeffreys'
    prior: like a paired bootstrap, but not of width zero where no answer happens to differ.

    Args:
        pairs: for every task the answers of both, (n,) each. Tasks count alike, however many questions they have.
        seed: of the random draws from the posterior.
        rounds: how many draws.
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
