"""How time is taken, and in which order the variants run."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
Name = TypeVar("Name")


@dataclass(frozen=True)
class Quartiles:
    """The median of some values, and their lower and upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Compute them from one value or more, by linear interpolation.

        >>> Quartiles.of([4.0, 1.0, 2.0, 3.0])
        Quartiles(median=2.5, low=1.75, high=3.25)
        """
        low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return {"median": self.median, "low": self.low, "high": self.high}


class RunTimer:
    """Takes the seconds of a piece of work on a device.

    On CUDA, it takes the time between two events on the stream. On a CPU with one thread, it takes the processor time
    of this thread, which other work on the machine disturbs least. Otherwise it takes the wall clock and waits for the
    device before and after.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def kind(self) -> str:
        """The name of the clock that is used."""
        if self.device.type == "cuda":
            return "CUDA events"
        return "processor time of the one thread" if self._single_threaded else "wall clock"

    @property
    def _single_threaded(self) -> bool:
        return self.device.type == "cpu" and torch.get_num_threads() == 1

    def time(self, work: Callable[[], T]) -> tuple[float, T]:
        """Return the seconds that `work` takes until its result is there, and that result."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                return self._time_events(work)
        now = time.thread_time if self._single_threaded else time.perf_counter
        self._synchronize()
        start = now()
        result = work()
        self._synchronize()
        return now() - start, result

    @staticmethod
    def _time_events(work: Callable[[], T]) -> tuple[float, T]:
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        result = work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000, result

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def turns(names: Sequence[Name], rounds: int) -> Iterator[tuple[int, Name]]:
    """Yield (round, name) in the order of the runs: every name once per round.

    >>> list(turns("AB", 2))
    [(0, 'A'), (0, 'B'), (1, 'A'), (1, 'B')]
    """
    for number in range(rounds):
        for name in names:
            yield number, name
