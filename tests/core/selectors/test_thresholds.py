"""Selectors without a budget, against NumPy and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference
from feathervlm.core import Given, LastTokenAttention, Random
from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of
from feathervlm.core.selectors.thresholds import IQR, Threshold
from feathervlm.core.signals import Attention

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROPE = LastTokenAttention()
IMAGE = ImageTokens(picture_of((1, 24, 24)), 400.0)


def sets(mask):
    return [set(row.nonzero().flatten().tolist()) for row in mask]


def by_image(tokens, reference):
    found = []
    for sample in range(len(tokens.present)):
        found.append(set())
        for image in range(tokens.geometry.images):
            members = tokens.present[sample] & (tokens.geometry.image[sample] == image)
            here = members.nonzero().flatten().tolist()
            scores = tokens.signals.answers[Attention()][sample, here].numpy()
            found[-1] |= {here[number] for number in reference(scores)} if here else set()
    return found


@relaxed
@given(st.data(), st.floats(-1, 1))
def test_threshold_keeps_what_is_above_or_the_best(batches, data, bound):
    tokens = data.draw(batches(min_images=1))
    expected = by_image(tokens, lambda scores: reference.above(scores, np.float32(bound)))
    assert sets(Threshold(ROPE, float(np.float32(bound))).select(tokens)) == expected


@relaxed
@given(st.data(), st.sampled_from([0.0, 0.5, 1.5, 3]))
def test_iqr_keeps_outliers_or_the_best(batches, data, factor):
    tokens = data.draw(batches(min_images=1))
    selected = sets(IQR(ROPE, factor).select(tokens))
    # A score on the fence itself may fall to either side of its rounding.
    low, high = (
        by_image(tokens, lambda scores, shift=shift: reference.above(scores, reference.fence(scores, factor) + shift))
        for shift in (1e-6, -1e-6)
    )
    assert all(a <= found <= b for a, found, b in zip(low, selected, high, strict=True))


def test_an_outlier_by_hand(candidates):
    scores = [[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100]]
    tokens = candidates([[(1, 2, 5)]], scores=scores)
    assert sets(IQR(ROPE).select(tokens)) == [{9}]  # Q1 = 3.25, Q3 = 7.75, so the fence is at 14.5
    assert sets(IQR(ROPE, factor=0).select(tokens)) == [{7, 8, 9}]


def test_every_image_has_a_fence_of_its_own(candidates):
    tokens = candidates([[(1, 1, 5), (1, 1, 5)]], scores=[[1.0, 1, 1, 1, 9, 100, 101, 102, 103, 500]])
    assert sets(IQR(ROPE).select(tokens)) == [{4, 9}]


@pytest.mark.parametrize("selector", [IQR(ROPE), Threshold(ROPE, 0.5)])
def test_the_best_token_stays_in_any_case(candidates, selector):
    tokens = candidates([[(1, 2, 2), (1, 1, 1)]], scores=[[0.1, 0.2, 0.2, 0.1, 0.0]])
    assert sets(selector.select(tokens)) == [{1, 4}]
    flat = candidates([[(1, 2, 2)]], scores=[[0.3] * 4], present=[[False, True, True, True]])
    assert sets(selector.select(flat)) == [{1}]
    gone = candidates([[(1, 2, 2)]], scores=[[0.9] * 4], present=[[False] * 4])
    assert sets(selector.select(gone)) == [set()]


def test_plans_use_the_expected_share():
    assert IQR(ROPE).expected(IMAGE) == pytest.approx(22)
    assert IQR(ROPE, expected_share=0.25).expected(IMAGE) == 100
    assert Threshold(ROPE, 0.1).expected(IMAGE) == 400
    assert IQR(ROPE).size(IMAGE) is None


def test_outliers_compose(candidates):
    tokens = candidates([[(1, 2, 5)]], scores=[[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100]])
    assert sets((IQR(ROPE) | Given([torch.tensor([2])])).select(tokens)) == [{2, 9}]
    filled = sets((IQR(ROPE) >> Random(4)).select(tokens))[0]
    assert len(filled) == 4
    assert 9 in filled
