"""Estimates against a slow reference, and the laws of pairing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.evaluation import statistics
from feathervlm.evaluation.statistics import Bootstrap, Estimate, mean

NUMBERS = st.lists(st.floats(-5, 5), min_size=1, max_size=20)


@given(NUMBERS)
def test_the_value_is_the_mean_and_the_draws_are_weighted_means(values):
    found = Bootstrap({"a": len(values)}, rounds=50).mean("a", np.array(values))
    weights = np.random.default_rng([0, 0]).exponential(size=(50, len(values) + 1))[:, :-1]
    slow = [sum(w * v for w, v in zip(row, values, strict=True)) / sum(row) for row in weights]
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    np.testing.assert_allclose(found.draws, slow, atol=1e-9)


def test_a_run_compared_with_itself_differs_by_nothing_and_has_ratio_one():
    bootstrap = Bootstrap({"a": 30})
    right = np.random.default_rng(0).random(30) < 0.6
    one, other = (bootstrap.share("run", "a", right) for _ in range(2))
    assert (one - other).interval == (one / other - 1).interval
    assert (one - other).low == (one - other).high == 0


def test_pairing_makes_a_difference_surer():
    rng = np.random.default_rng(1)
    hard = rng.random(200) < 0.5
    better = hard | (rng.random(200) < 0.1)
    bootstrap = Bootstrap({"a": 200, "b": 200})
    paired = bootstrap.share("one", "a", better) - bootstrap.share("other", "a", hard)
    apart = bootstrap.share("one", "a", better) - bootstrap.share("other", "b", hard)
    assert paired.value == apart.value
    assert paired.high - paired.low < (apart.high - apart.low) / 2


@pytest.mark.parametrize(("share", "n"), [(0.5, 100), (0.9, 400)])
def test_the_interval_is_that_of_a_share(share, n):
    right = np.arange(n) < share * n
    found = Bootstrap({"a": n}, rounds=20_000).share("run", "a", right)
    spread = 1.96 * (share * (1 - share) / n) ** 0.5
    assert found.high - found.low == pytest.approx(2 * spread, rel=0.08)
    assert found.low < share < found.high


def test_few_questions_make_nothing_certain():
    all_right = np.ones(10, bool)
    one_wrong = all_right.copy()
    one_wrong[3] = False
    bootstrap = Bootstrap({"a": 10})
    perfect, good = bootstrap.share("perfect", "a", all_right), bootstrap.share("good", "a", one_wrong)
    assert perfect.low < 0.95, "ten right answers do not make a share of 1"
    assert (perfect - good).low < 0 < (perfect - good).high, "one question is no evidence"
    same = bootstrap.share("other", "a", all_right) - perfect
    assert same.value == 0 > same.low, "nor are ten equal answers evidence of equality"


def test_only_some_questions_count():
    right = np.array([True, False, False, True])
    bootstrap = Bootstrap({"a": 4})
    assert bootstrap.mean("a", np.array([1.0, 0.0, np.nan, 1.0])).value == pytest.approx(2 / 3)
    assert bootstrap.share("run", "a", right, np.array([True, True, True, False])).value == pytest.approx(1 / 3)
    for nothing in (bootstrap.mean("a", np.full(4, np.nan)), bootstrap.share("run", "a", right, np.zeros(4, bool))):
        assert nothing.to_dict() == {"value": None, "low": None, "high": None}


def test_arithmetic():
    one, other = Estimate(4.0, np.array([3.0, 5.0])), Estimate(2.0, np.array([1.0, 3.0]))
    for found, value, draws in (
        (one + other, 6, [4, 8]),
        (one - 1.0, 3, [2, 4]),
        (1 - one, -3, [-2, -4]),
        (one * 2.0, 8, [6, 10]),
        (one / other, 2, [3, 5 / 3]),
        (mean([one, other]), 3, [2, 4]),
    ):
        assert found.value == value
        np.testing.assert_allclose(found.draws, draws)


def test_dividing_by_nothing_is_not_a_number_and_no_warning(recwarn):
    one = Estimate(1.0, np.ones(3)) / Estimate(0.0, np.zeros(3))
    assert one.to_dict() == {"value": None, "low": None, "high": None}
    assert not recwarn.list


@pytest.mark.parametrize("block", [1, 100, 1 << 24])
def test_weights_drawn_in_blocks_are_the_same(monkeypatch, block):
    rng = np.random.default_rng(0)
    scores = {method: rng.random(37) for method in ("one", "other")}
    among = rng.random(37) < 0.7
    whole = Bootstrap({"a": 3, "b": 37}, seed=5)
    expected = {method: whole.share(method, "b", own) for method, own in scores.items()}
    some, mean, means = whole.shares("b", scores, among), whole.mean("b", scores["one"]), None
    means = whole.means("b", rng.random((37, 2)), 7)
    monkeypatch.setattr(statistics, "BLOCK", block)
    blocks = Bootstrap({"a": 3, "b": 37}, seed=5)
    for method, own in blocks.shares("b", scores).items():
        assert own.value == pytest.approx(expected[method].value)
        np.testing.assert_allclose(own.draws, expected[method].draws)
        np.testing.assert_allclose(blocks.shares("b", scores, among)[method].draws, some[method].draws)
    np.testing.assert_allclose(blocks.mean("b", scores["one"]).draws, mean.draws)
    rng = np.random.default_rng(0)
    rng.random((2, 37)), rng.random(37)
    np.testing.assert_allclose(blocks.means("b", rng.random((37, 2)), 7), means)
