"""Processes for tests of their ends; a module of its own, because a process that starts imports it."""

import multiprocessing
import signal

from feathervlm.utils.processes import end_with


def wait_with(listener, connection):
    end_with(listener)
    connection.send("ready")
    signal.pause()


def middle(connection):
    """A process that starts another one, tells its id once it is ready, and waits."""
    context = multiprocessing.get_context("spawn")
    listener, alive = context.Pipe(duplex=False)
    mine, theirs = context.Pipe()
    child = context.Process(target=wait_with, args=(listener, theirs))
    child.start()
    mine.recv()
    connection.send(child.pid)
    signal.pause()
    alive.close()
