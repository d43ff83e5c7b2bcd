import math

import pytest
import torch
from choices import ROPE, per_image, relaxed, sets
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.core import Grid, LastTokenAttention, PruningError, Random, Top
from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of


@relaxed
@given(st.data(), st.floats(0.01, 1) | st.integers(1, 40))
def test_equal_scores_keep_the_lowest_indices_of_every_image(batches, data, keep):
    tokens = data.draw(batches(min_images=1))
    tokens.scores[ROPE] = torch.zeros(tokens.present.shape)
    selected = Top(ROPE, keep).select(tokens)
    for sample in range(len(selected)):
        for image in range(tokens.geometry.images):
            members = tokens.present[sample] & (tokens.geometry.image[sample] == image)
            chosen = selected[sample][members].tolist()
            assert chosen == sorted(chosen, reverse=True)


@relaxed
@given(st.data(), st.floats(0.01, 1) | st.integers(1, 40), st.integers(0, 5))
def test_random_keeps_the_same_tokens_in_any_company(candidates, data, keep, seed):
    grids = st.lists(st.tuples(st.just(1), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=2)
    sample, other = data.draw(grids), data.draw(grids)
    single = sets(Random(keep, seed).select(candidates([sample])))
    assert sets(Random(keep, seed).select(candidates([sample, other]))[:1]) == single
    assert sets(Random(keep, seed).select(candidates([other, other, sample]))[2:]) == single


def test_random_depends_on_its_seed(candidates):
    tokens = candidates([[(1, 9, 9)]])
    assert len({frozenset(sets(Random(0.5, seed).select(tokens))[0]) for seed in range(5)}) == 5


def test_a_fraction_is_of_the_original_count_or_of_the_current_one(candidates):
    tokens = candidates([[(1, 2, 5)]], scores=torch.arange(10.0)[None], present=[[True] * 4 + [False] * 6])
    assert sets(Top(ROPE, 0.5, of="original").select(tokens)) == [{0, 1, 2, 3}]
    assert sets(Top(ROPE, 0.5, of="current").select(tokens)) == [{2, 3}]


def test_every_image_has_a_budget_of_its_own(candidates):
    tokens = candidates([[(1, 1, 3), (1, 1, 3)]], scores=[[1.0, 2, 3, 4, 5, 6]])
    assert sets(Top(ROPE, 1 / 3).select(tokens)) == [{2, 5}]


@pytest.mark.parametrize(("stride", "count"), [(1, 729), (2, 196), (3, 81), (4, 49), (5, 36)])
def test_grid_counts_on_27_by_27(candidates, stride, count):
    image = ImageTokens(picture_of((1, 27, 27)), 729.0)
    selected = sets(Grid(stride).select(candidates([[(1, 27, 27)]])))[0]
    assert len(selected) == Grid(stride).size(image) == Grid(stride).expected(image) == count
    assert selected == {27 * row + col for row in range(0, 27, stride) for col in range(0, 27, stride)}


@relaxed
@given(st.data(), st.integers(1, 5) | st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
def test_grid_agrees_with_loops(batches, data, stride):
    tokens = data.draw(batches(max_frames=3))
    frame, row, col = (1, stride, stride) if isinstance(stride, int) else stride
    place = tokens.geometry
    expected = [
        {
            v
            for v in range(tokens.present.shape[1])
            if tokens.present[b, v]
            and place.frame[b, v] % frame == 0
            and place.row[b, v] % row == 0
            and place.col[b, v] % col == 0
        }
        for b in range(len(tokens.present))
    ]
    selected = Grid(stride).select(tokens)
    assert sets(selected) == expected
    for image, count in per_image(tokens, selected):
        assert Grid(stride).size(image) == (count if image.current == image.original else None)


@relaxed
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 5) | st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
)
def test_grid_expects_exactly_what_a_whole_image_gives(candidates, grid, stride):
    image = ImageTokens(picture_of(grid), float(math.prod(grid)))
    count = int(Grid(stride).select(candidates([[grid]])).sum())
    assert Grid(stride).expected(image) == Grid(stride).size(image) == count


def test_a_list_of_strides_is_the_tuple():
    assert Grid([1, 2, 3]) == Grid((1, 2, 3))
    assert hash(Grid([1, 2, 3])) == hash(Grid((1, 2, 3)))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Top(ROPE, 0), "keep=0"),
        (lambda: Top(ROPE, 1.5), "keep=1.5"),
        (lambda: Random(-0.1), "keep=-0.1"),
        (lambda: Top(ROPE, 0.5, of="all"), "of='all'"),
        (lambda: Top("attention", 0.5), "'attention'"),
        (lambda: Top(LastTokenAttention, 0.5), "LastTokenAttention"),
        (lambda: Grid(0), "stride=0"),
        (lambda: Grid(-2), "stride=-2"),
        (lambda: Grid(True), "stride=True"),
        (lambda: Grid((2, 2)), "stride=(2, 2)"),
        (lambda: Grid((1, 2, 0)), "stride=(1, 2, 0)"),
        (lambda: Grid((1, 2, 2.5)), "stride=(1, 2, 2.5)"),
    ],
)
def test_bad_parameters_are_named(make, named):
    with pytest.raises(PruningError) as error:
        make()
    assert named in str(error.value)
