import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.core.budget import check_fraction, check_keep, is_count, kept, kept_tensor
from feathervlm.core.errors import PruningError

FRACTIONS = st.floats(0, 1, exclude_min=True)
COUNTS = st.integers(2, 5000)


@given(FRACTIONS, st.integers(0, 5000))
def test_a_fraction_truncates_and_keeps_at_least_one(keep, tokens):
    assert kept(keep, tokens) == min(max(int(tokens * keep), 1), tokens)


@given(COUNTS, st.integers(0, 5000))
def test_a_count_is_capped_by_what_is_there(keep, tokens):
    assert kept(keep, tokens) == min(keep, tokens)


@pytest.mark.parametrize(
    ("keep", "tokens", "expected"),
    [
        (0.3, 729, 218),
        (0.25, 729, 182),
        (0.09, 275, 24),
        (0.5, 576, 288),
        (0.29, 100, 28),  # int(28.999999999999996), as the reference has it
        (1, 729, 729),
        (1.0, 729, 729),
        (0.001, 729, 1),
        (0.001, 0, 0),
        (196, 729, 196),
        (2, 1, 1),
    ],
)
def test_known_counts(keep, tokens, expected):
    assert kept(keep, tokens) == expected


@given(FRACTIONS | COUNTS | st.just(1), st.lists(st.lists(st.integers(0, 5000), min_size=2, max_size=2)))
def test_the_tensor_form_agrees_elementwise(keep, tokens):
    counts = torch.tensor(tokens, dtype=torch.long).view(-1, 2)
    result = kept_tensor(keep, counts)
    assert result.dtype == torch.long
    assert result.tolist() == [[kept(keep, n) for n in row] for row in tokens]


def test_the_tensor_form_agrees_to_the_last_token():
    # Products such as 100 * 0.29 fall just below a whole number in float64, and elsewhere in float32.
    for keep in (percent / 100 for percent in range(1, 101)):
        assert kept_tensor(keep, torch.arange(800)).tolist() == [kept(keep, n) for n in range(800)]


@given(FRACTIONS | COUNTS | st.just(1))
def test_valid_keeps_pass(keep):
    check_keep(keep)
    assert is_count(keep) == (keep > 1)


@given(FRACTIONS | st.just(1))
def test_valid_fractions_pass(keep):
    check_fraction(keep)


NOT_FRACTIONS = [0, 0.0, -0.5, -3, 1.5, 2.0, math.inf, math.nan, True, False, None, "0.5", (0.5,)]


@pytest.mark.parametrize("keep", NOT_FRACTIONS)
def test_bad_keeps_are_named(keep):
    with pytest.raises(PruningError) as error:
        check_keep(keep, "share")
    assert f"share={keep!r}" in str(error.value)


@pytest.mark.parametrize("keep", [*NOT_FRACTIONS, 2, 196])
def test_bad_fractions_are_named(keep):
    with pytest.raises(PruningError) as error:
        check_fraction(keep, "share")
    assert f"share={keep!r}" in str(error.value)
