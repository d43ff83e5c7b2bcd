"""Work in threads: one at a time, in the order of requests, stopped at once, and every end is told."""

import threading

import pytest
import torch

from feathervlm import PruningError
from feathervlm.app.jobs import Channel, Ended, Job, RunQueue, Waiting, sentence
from feathervlm.inference.streaming import Stopped

LONG = 20
"""Seconds after which a test gives up."""


def ended(job):
    """All events of a job, flat."""
    return [event for batch in job.events() for event in batch]


def test_events_come_in_order_and_the_end_is_last():
    def work(channel):
        for number in range(50):
            channel.emit(number)

    assert ended(Job(work, RunQueue())) == [*range(50), Ended()]


def test_one_run_at_a_time_in_the_order_of_requests():
    queue, order, inside, first, release = RunQueue(), [], [], threading.Event(), threading.Event()

    def work(name):
        def run(channel):
            inside.append(name)
            assert len(inside) == 1, "two runs at once"
            if name == 0:
                first.set()
                release.wait(LONG)
            order.append(name)
            inside.remove(name)

        return run

    found = {}
    threads = []
    for name in range(4):
        job = Job(work(name), queue)
        told = threading.Event()

        def read(name=name, job=job, told=told):
            found[name] = []
            for batch in job.events():
                found[name] += batch
                told.set()

        threads.append(threading.Thread(target=read))
        threads[-1].start()
        assert (first if name == 0 else told).wait(LONG), "the next request comes when this one is in the line"
    release.set()
    for thread in threads:
        thread.join(LONG)
    assert order == [0, 1, 2, 3]
    assert found[0] == [Ended()]
    assert found[2][0] == Waiting(2)
    assert str(Waiting(1)) == "Waiting for 1 other run to end."
    assert all(events[-1] == Ended() for events in found.values())


def test_who_waits_can_leave():
    queue, busy, release = RunQueue(), threading.Event(), threading.Event()

    def long(channel):
        busy.set()
        release.wait(LONG)

    running, waiting = Job(long, queue), Job(lambda channel: pytest.fail("it was stopped"), queue)
    thread = threading.Thread(target=ended, args=(running,))
    thread.start()
    busy.wait(LONG)
    events = waiting.events()
    assert next(events) == [Waiting(1)]
    waiting.stop()
    assert next(events) == [Ended(stopped=True)]
    release.set()
    thread.join(LONG)
    assert ended(Job(lambda channel: None, queue)) == [Ended()]


def test_a_page_that_closes_stops_its_run():
    stopped = threading.Event()

    def work(channel):
        channel.emit("began")
        channel.stop.wait(LONG)
        stopped.set()
        raise Stopped

    events = Job(work, RunQueue()).events()
    assert next(events) == ["began"]
    events.close()
    assert stopped.wait(LONG)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PruningError("There is\n  no such thing."), "There is no such thing."),
        (MemoryError(), "There is not enough memory for this run"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to ..."), "There is not enough memory"),
        (KeyError("x"), "The run failed with KeyError, which is a fault of feathervlm; the terminal shows where."),
        (SystemExit(1), "The run failed with SystemExit"),
    ],
)
def test_every_error_is_one_sentence(error, words, caplog):
    def work(channel):
        raise error

    (last,) = ended(Job(work, RunQueue()))
    assert words in last.error
    assert "\n" not in last.error
    assert (caplog.text == "") == (type(error) in (PruningError, MemoryError, torch.OutOfMemoryError))
    assert sentence(error) == last.error


def test_timing_waits_until_the_page_has_shown_everything():
    shown, timed = [], []

    def work(channel):
        channel.emit("a picture")
        channel.settle()
        timed.append(list(shown))

    for batch in Job(work, RunQueue()).events():
        shown += batch
    assert "a picture" in timed[0]
    Channel().settle()  # without a page there is nothing to wait for
