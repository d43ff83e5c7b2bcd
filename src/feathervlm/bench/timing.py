"""The one way in which time is taken, and the order in which runs take turns.

Knows devices; knows nothing of models and methods.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
Name = TypeVar("Name")


@dataclass(frozen=True)
class Spread:
    """The median of some values, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value or more, quartiles by linear interpolation.

        >>> Spread.of([4.0, 1.0, 2.0, 3.0])
        Spread(median=2.5, low=1.75, high=3.25)
        """
        low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))

    def to_dict(self) -> dict[str, float]:
        """As plain numbers."""
        return {"median": self.median, "low": self.low, "high": self.high}


class Clock:
    """Takes the seconds of a piece of work on a device.

    On CUDA between two events on the stream; on a CPU with one thread the time that this thread was given, which other
    work on the machine disturbs least; otherwise from the wall clock, the device waited for before and after.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def kind(self) -> str:
        """What is taken, in words."""
        if self.device.type == "cuda":
            return "CUDA events"
        return "processor time of the one thread" if self._alone else "wall clock"

    @property
    def _alone(self) -> bool:
        return self.device.type == "cpu" and torch.get_num_threads() == 1

    def time(self, work: Callable[[], T]) -> tuple[float, T]:
        """The seconds of `work` until its result is there, and that result."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                return self._events(work)
        now = time.thread_time if self._alone else time.perf_counter
        self._wait()
        start = now()
        result = work()
        self._wait()
        return now() - start, result

    @staticmethod
    def _events(work: Callable[[], T]) -> tuple[float, T]:
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        result = work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000, result

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def turns(names: Sequence[Name], rounds: int) -> Iterator[tuple[int, Name]]:
    """(round, name) in the order of the runs: everybody once, again and again.

    >>> list(turns("AB", 2))
    [(0, 'A'), (0, 'B'), (1, 'A'), (1, 'B')]
    """
    for number in range(rounds):
        for name in names:
            yield number, name
