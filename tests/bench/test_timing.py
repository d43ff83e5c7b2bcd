"""Medians and quartiles, the order of turns, what is taken on which device."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.bench.timing import Quartiles, RunTimer, turns


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=9))
def test_spread_is_that_of_a_sorted_list(values):
    found, line = Quartiles.of(values), sorted(values)

    def at(share):
        place = share * (len(line) - 1)
        low = int(place)
        return line[low] + (place - low) * (line[min(low + 1, len(line) - 1)] - line[low])

    assert [found.low, found.median, found.high] == pytest.approx([at(0.25), at(0.5), at(0.75)])
    assert np.median(values) == pytest.approx(found.median)


def test_everybody_takes_a_turn_in_every_round():
    assert list(turns(["A", "B"], 3)) == [(n, name) for n in range(3) for name in "AB"]


def test_the_clock_returns_what_the_work_does_and_waits_for_no_sleeper():
    clock = RunTimer(torch.device("cpu"))
    seconds, result = clock.time(lambda: time.sleep(0.02) or 5)
    assert result == 5
    assert clock.kind == "processor time of the one thread"
    assert seconds < 0.02  # a thread that sleeps takes no processor time


def test_several_threads_are_timed_by_the_wall_clock():
    torch.set_num_threads(2)
    try:
        clock = RunTimer(torch.device("cpu"))
        assert clock.kind == "wall clock"
        assert clock.time(lambda: time.sleep(0.02))[0] >= 0.02
    finally:
        torch.set_num_threads(1)
