"""Intervals cover what they should and agree with plain formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.evaluation.statistics import paired, wilson


@given(st.integers(1, 400), st.floats(0, 1))
def test_wilson_solves_its_equation(n, share):
    right = np.arange(n) < round(share * n)
    interval = wilson(right)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for end in (interval.low, interval.high):
        # The ends are the shares p for which the measured one lies 1.96 standard errors away, or the ends of [0, 1].
        if 1e-9 < end < 1 - 1e-9:
            assert abs(interval.value - end) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5, abs=1e-6)


def test_paired_agrees_with_drawing_questions_again():
    rng = np.random.default_rng(0)
    one, other = rng.random(300) < 0.8, rng.random(300) < 0.6
    slow = [(one[pick].mean() - other[pick].mean()) for pick in rng.integers(0, 300, (4000, 300))]
    interval = paired([(one, other)])
    assert interval.value == pytest.approx(one.mean() - other.mean())
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))), abs=0.02)


def test_few_questions_without_a_change_are_no_proof_of_none():
    right = np.arange(40) % 3 > 0
    interval = paired([(right, right)])
    assert interval.value == 0
    assert interval.low == pytest.approx(-interval.high, abs=0.01)
    assert 0.02 < interval.high < 0.1


def test_tasks_count_alike():
    yes, no = np.ones(10, bool), np.zeros(1000, bool)
    assert paired([(yes, ~yes), (no, no)]).value == 0.5


@pytest.mark.parametrize(("n", "high", "low"), [(200, 0.7, 0.6), (60, 0.9, 0.88), (300, 0.98, 0.96)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(n, high, low):
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        first = rng.random(n)
        interval = paired([(first < high, first < low)], seed=int(rng.integers(1 << 30)), rounds=500)
        hits += interval.low <= high - low <= interval.high
    assert 0.9 <= hits / 400 <= 0.995
