"""Work in a thread of its own, whose events a page reads; one piece of work at a time, in the order of requests."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from feathervlm.core.errors import PruningError
from feathervlm.inference.streaming import Stopped

logger = logging.getLogger(__name__)

Work = Callable[["Channel"], None]
"""Does something and reports it; ends with `Stopped` once it is to stop."""


@dataclass(frozen=True)
class Waiting:
    """Other requests come first."""

    before: int

    def __str__(self) -> str:
        return f"Waiting for {self.before} other run{'s' if self.before > 1 else ''} to end."


@dataclass(frozen=True)
class Ended:
    """The work has ended; `error` says in a sentence why it could not be done, and `stopped` that it was stopped."""

    error: str = ""
    stopped: bool = False


class RunQueue:
    """Lets one run at a time use the model, in the order of requests."""

    def __init__(self) -> None:
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, waiting: Callable[[int], None], stop: threading.Event) -> Iterator[None]:
        """Wait for the turn, and keep it inside the block.

        Args:
            waiting: Callback, called with the number of requests that come first whenever it changes.
            stop: Event that ends the wait; `wake` has to be called after it is set.

        Raises:
            Stopped: The wait was ended.
        """
        place = object()
        with self._moved:
            self._line.append(place)
        try:
            with self._moved:
                said = 0
                while (before := self._line.index(place)) and not stop.is_set():
                    if before != said:
                        waiting(before)
                        said = before
                    self._moved.wait()
            if stop.is_set():
                raise Stopped
            yield
        finally:
            with self._moved:
                self._line.remove(place)
                self._moved.notify_all()

    def wake(self) -> None:
        """Let everybody who waits look whether to stop."""
        with self._moved:
            self._moved.notify_all()


class Channel:
    """What connects work and page: events in one direction, a wish to stop in the other.

    Args:
        watched: Whether a page will read the events.

    Attributes:
        stop: Event that is set when the work is to stop.
    """

    def __init__(self, watched: bool = False) -> None:
        self.stop = threading.Event()
        self._events: deque[Any] = deque()
        self._changed = threading.Condition()
        self._watched, self._idle = watched, False

    def emit(self, event: Any) -> None:
        """Pass an event to the page."""
        with self._changed:
            self._events.append(event)
            self._idle = False
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait until the page has shown all events, so that drawing does not slow down what is timed next."""
        with self._changed:
            while self._watched and not self._idle and not self.stop.is_set():
                self._changed.wait(0.1)

    def read(self) -> Iterator[list[Any]]:
        """Yield the events that have come since the last ones; the last event is `Ended`."""
        try:
            while True:
                with self._changed:
                    self._idle = not self._events
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._events)
                    batch = list(self._events)
                    self._events.clear()
                yield batch
                if isinstance(batch[-1], Ended):
                    return
        finally:
            self._watched = False


class Job:
    """One piece of work.

    Args:
        work: The work.
        turns: The line in which it waits.
    """

    def __init__(self, work: Work, turns: RunQueue) -> None:
        self._work, self._turns, self._channel = work, turns, Channel(watched=True)
        self._thread = threading.Thread(target=self._run, name="feathervlm-job", daemon=True)

    def events(self) -> Iterator[list[Any]]:
        """Start, and yield events, see `Channel.read`; a caller that leaves early stops the work."""
        self._thread.start()
        try:
            yield from self._channel.read()
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop the work as soon as it can be stopped."""
        self._channel.stop.set()
        self._turns.wake()

    def _run(self) -> None:
        channel = self._channel
        try:
            with self._turns.turn(lambda before: channel.emit(Waiting(before)), channel.stop):
                self._work(channel)
        except Stopped:
            channel.emit(Ended(stopped=True))
        except BaseException as error:  # whatever happens, the page has to learn that the work has ended
            channel.emit(Ended(sentence(error)))
        else:
            channel.emit(Ended())


def sentence(error: BaseException) -> str:
    """Return what went wrong in one sentence; an error that is not one of the user's goes to the log, too."""
    if isinstance(error, PruningError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "There is not enough memory for this run; choose a smaller picture, a shorter answer or a smaller model."
    logger.error("A run of the page failed.", exc_info=error)
    return f"The run failed with {type(error).__name__}, which is a fault of feathervlm; the terminal shows where."
