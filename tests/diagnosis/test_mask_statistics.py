"""Sets of kept tokens against naive references, cell by cell."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from feathervlm.core.errors import PruningError
from feathervlm.diagnosis import mask_statistics
from feathervlm.evaluation import samples

quickly = settings(deadline=None)

SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9))
MASKS = SHAPES.flatmap(lambda shape: arrays(bool, shape))


def cells(mask):
    return [tuple(map(int, cell)) for cell in np.argwhere(mask)]


@quickly
@given(MASKS)
def test_packing_comes_back(mask):
    text = samples.pack(mask)
    assert len(text) == 2 * math.ceil(mask.size / 8)
    assert (samples.unpack(text, mask.shape) == mask).all()


@pytest.mark.parametrize("text", ["zz", "ffff", ""])
def test_what_is_no_packed_mask(text):
    with pytest.raises(PruningError, match=r"mask"):
        samples.unpack(text, (1, 2, 4))


@quickly
@given(MASKS)
def test_rows(mask):
    rows = mask.shape[1]
    found = cells(mask)
    if not found:
        assert all(
            math.isnan(of(mask))
            for of in (mask_statistics.mean_row, mask_statistics.bottom_third, mask_statistics.border_share)
        )
        assert np.isnan(mask_statistics.row_profile([mask])).all()
        return
    assert mask_statistics.mean_row(mask) == pytest.approx(np.mean([(row + 0.5) / rows for _, row, _ in found]))
    parts = [min(max((row + 1) / rows - 2 / 3, 0) * rows, 1) for _, row, _ in found]
    assert mask_statistics.bottom_third(mask) == pytest.approx(np.mean(parts))
    profile = mask_statistics.row_profile([mask])
    assert profile == pytest.approx([sum(cell[1] == row for cell in found) / len(found) for row in range(rows)])
    assert mask_statistics.column_profile([mask]) == pytest.approx(
        mask_statistics.row_profile([mask.transpose(0, 2, 1)])
    )


@quickly
@given(st.lists(MASKS, min_size=1, max_size=4), st.one_of(st.none(), st.integers(1, 30)))
def test_profiles_sum_to_one(masks, bins):
    profile = mask_statistics.row_profile(masks, bins)
    rows = {mask.shape[1] for mask in masks}
    assert len(profile) == (bins or (rows.pop() if len(rows) == 1 else 24))
    if any(mask.any() for mask in masks):
        assert profile.sum() == pytest.approx(1)
        assert (profile >= 0).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 27])
def test_an_even_spread(rows):
    mask = np.ones((1, rows, 5), bool)
    assert mask_statistics.mean_row(mask) == pytest.approx(0.5)
    assert mask_statistics.bottom_third(mask) == pytest.approx(1 / 3)
    assert mask_statistics.border_share(mask) == pytest.approx(mask_statistics.even_border_share(mask.shape))
    assert mask_statistics.row_profile([mask], 7) == pytest.approx(np.full(7, 1 / 7))


@quickly
@given(st.lists(MASKS, min_size=1, max_size=4), st.sampled_from([None, (3, 5)]))
def test_heat_map(masks, shape):
    heat = mask_statistics.heat_map(masks, shape)
    shapes = {mask.shape[1:] for mask in masks}
    rows, cols = shape or (shapes.pop() if len(shapes) == 1 else (24, 24))
    assert heat.shape == (rows, cols)
    for row in range(rows):
        for col in range(cols):
            share = np.mean(
                [m[:, int((row + 0.5) / rows * m.shape[1]), int((col + 0.5) / cols * m.shape[2])].mean() for m in masks]
            )
            assert heat[row, col] == pytest.approx(share)


@quickly
@given(MASKS)
def test_the_largest_uncovered_square(mask):
    frames, rows, cols = mask.shape
    largest = max(
        side
        for side in range(min(rows, cols) + 1)
        for frame in range(frames)
        for top in range(rows - side + 1)
        for left in range(cols - side + 1)
        if not mask[frame, top : top + side, left : left + side].any()
    )
    assert mask_statistics.largest_uncovered_square(mask) == largest


@quickly
@given(MASKS, st.integers(1, 4))
def test_empty_blocks(mask, block):
    frames, rows, cols = mask.shape
    down, across = min(block, rows), min(block, cols)
    blocks = [
        mask[frame, top : top + down, left : left + across].any()
        for frame in range(frames)
        for top in range(0, rows - down + 1, down)
        for left in range(0, cols - across + 1, across)
    ]
    assert mask_statistics.empty_blocks(mask, block) == pytest.approx(1 - np.mean(blocks))


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_a_uniform_grid_leaves_no_block_empty(stride):
    mask = np.zeros((1, 16, 13), bool)
    mask[:, ::stride, ::stride] = True
    assert mask_statistics.empty_blocks(mask, stride) == 0
    assert mask_statistics.largest_uncovered_square(mask) == stride - 1


@quickly
@given(MASKS)
def test_the_border(mask):
    _, rows, cols = mask.shape
    ring = {0, rows - 1}, {0, cols - 1}
    found = cells(mask)
    if found:
        share = np.mean([row in ring[0] or col in ring[1] for _, row, col in found])
        assert mask_statistics.border_share(mask) == pytest.approx(share)


@quickly
@given(SHAPES.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))))
def test_overlap_is_containment(pair):
    a, b = pair
    if not b.any():
        assert math.isnan(mask_statistics.overlap(a, b))
        return
    assert mask_statistics.overlap(a, b) == pytest.approx(len(set(cells(a)) & set(cells(b))) / len(cells(b)))
    assert mask_statistics.overlap(b, b) == 1
    assert mask_statistics.overlap(a | b, b) == 1


def test_chi_square_by_hand():
    statistic, p = mask_statistics.chi_square([10, 20, 30], [20, 20, 20])
    assert statistic == pytest.approx(10)
    assert p == pytest.approx(math.exp(-5))  # two degrees of freedom: an exponential
    assert mask_statistics.chi_square([5, 5], [5, 5]) == (0, 1)
    assert mask_statistics.chi_square([7], [7]) == (0, 1)
    assert mask_statistics.chi_square([13, 7], [10, 10])[1] == pytest.approx(math.erfc(math.sqrt(1.8 / 2)))


def test_chi_square_of_even_draws_is_rarely_small():
    rng = np.random.default_rng(0)
    ps = [mask_statistics.chi_square(rng.multinomial(400, [1 / 8] * 8), [50] * 8)[1] for _ in range(400)]
    assert np.mean(np.array(ps) < 0.1) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mask_statistics.heat_map([]),
        lambda: mask_statistics.row_profile([]),
        lambda: mask_statistics.mean_row(np.ones(4, bool)),
        lambda: mask_statistics.mean_row(np.ones((1, 0, 4), bool)),
        lambda: mask_statistics.overlap(np.ones((2, 2)), np.ones((2, 3))),
        lambda: mask_statistics.empty_blocks(np.ones((2, 2)), 0),
        lambda: mask_statistics.chi_square([1, 2], [1, 0]),
        lambda: mask_statistics.chi_square([1, 2], [1, 1, 1]),
    ],
)
def test_mistakes(call):
    with pytest.raises(PruningError):
        call()


def test_two_dimensions_are_one_frame():
    mask = np.eye(4, dtype=bool)
    assert mask_statistics.mean_row(mask) == mask_statistics.mean_row(mask[None]) == 0.5
