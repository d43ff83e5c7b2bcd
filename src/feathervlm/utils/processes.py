"""Worker processes that end with the process that started them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Returns what a function makes of each of some values, in the order in which they are ready."""


@contextmanager
def workers(count: int, prepare: Callable[..., None], *arguments: Any) -> Iterator[Map]:
    """Start worker processes with spawn, because forking after torch has run is not safe.

    Args:
        count: Number of processes.
        prepare: Function that each process calls first, such as to load a model.
        arguments: Arguments of `prepare`.

    Yields:
        A function that maps over the processes.
    """
    context = multiprocessing.get_context("spawn")
    listener, alive = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, context, _prepared, (listener, prepare, *arguments))
    try:
        yield partial(_mapped, pool)
        pool.shutdown()
    finally:
        alive.close()  # ends workers that are still busy
        pool.shutdown(wait=False, cancel_futures=True)


def _mapped(pool: ProcessPoolExecutor, function: Callable[[Any], Any], values: Sequence[Any]) -> Iterator[Any]:
    try:
        for future in as_completed([pool.submit(function, value) for value in values]):
            yield future.result()
    except BrokenProcessPool as error:
        from feathervlm.core.errors import PruningError  # here, so that a process starts without torch

        raise PruningError(
            "A worker process has died, perhaps because memory ran out; run the same command again with fewer "
            "--processes, and it continues where it was."
        ) from error


def _prepared(listener: Connection, prepare: Callable[..., None], *arguments: Any) -> None:
    end_with(listener)
    prepare(*arguments)


def end_with(listener: Connection) -> None:
    """End this process as soon as the other end of a pipe closes, as it does when the process that holds it ends.

    An interrupt at the keyboard, which reaches all processes of a terminal, is left to that other process.

    Args:
        listener: This end of the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_wait, args=(listener,), daemon=True).start()


def _wait(listener: Connection) -> None:
    listener.poll(None)
    os._exit(1)
