import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from feathervlm.core import (
    Everything,
    Given,
    Grid,
    KNNDensity,
    LastTokenAttention,
    Nothing,
    PruningError,
    Random,
    RandomScore,
    Schedule,
    Stage,
    Top,
)
from feathervlm.core.budget import kept
from feathervlm.core.fixed import LeftBy
from feathervlm.core.layout import picture_of
from feathervlm.core.selectors import Fill, ImageTokens, Intersection, Union
from feathervlm.core.signals import Attention, Features, Survivors

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROPE, NO_ROPE = LastTokenAttention(), LastTokenAttention(rope=False)


def sets(mask):
    return [set(row.nonzero().flatten().tolist()) for row in mask]


def per_image(tokens, mask):
    for sample, grids in enumerate(tokens.signals.grids):
        for image, grid in enumerate(grids):
            members = (tokens.geometry.image[sample] == image) & tokens.geometry.exists[sample]
            current = int((members & tokens.present[sample]).sum())
            yield ImageTokens(picture_of(grid), float(current)), int((mask[sample] & members).sum())


def per_group(tokens, mask):
    return torch.zeros_like(tokens.current()).scatter_add_(1, tokens.geometry.image, mask.long())


@settings(relaxed, max_examples=120)
@given(st.data())
def test_a_selection_is_a_subset_of_what_is_present(batches, selectors, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(selectors)
    keep = selector.select(tokens)
    assert keep.dtype == torch.bool
    assert keep.shape == tokens.present.shape
    assert not (keep & ~tokens.present).any()
    assert torch.equal(keep, selector.select(tokens))


@settings(relaxed, max_examples=120)
@given(st.data())
def test_a_batch_is_its_samples_one_by_one(batches, selectors, alone, data):
    tokens, selector = data.draw(batches()), data.draw(selectors)
    assume(tokens.present.shape[1])
    together = sets(selector.select(tokens))
    for sample, selected in enumerate(together):
        if tokens.signals.grids[sample]:
            assert sets(selector.select(alone(tokens, sample))) == [selected]
        else:
            assert not selected


@settings(relaxed, max_examples=120)
@given(st.data())
def test_a_size_that_is_known_is_the_size(batches, selectors, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(selectors)
    for image, count in per_image(tokens, selector.select(tokens)):
        size = selector.size(image)
        assert size is None or (size == count and isinstance(size, int))


@relaxed
@given(st.data())
def test_expectations_stay_between_nothing_and_everything(batches, selectors, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(selectors)
    for image, _ in per_image(tokens, tokens.present):
        assert 0 <= selector.expected(image) <= image.current + 1e-9


@relaxed
@given(st.data())
def test_criteria_and_signals_announce_everything_that_is_read(batches, selectors, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(selectors)
    selector.select(tokens)
    assert set(tokens.scores) <= set(selector.criteria())
    assert set(tokens.signals.asked) <= set(selector.signals())


@relaxed
@given(st.data())
def test_ranked_selectors_keep_the_best_of_every_image(batches, ranked, naive_top, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(ranked)
    counts = (tokens.original() if selector.of == "original" else tokens.current()).tolist()
    budget = torch.tensor([[kept(selector.keep, n) for n in row] for row in counts])
    assert torch.equal(selector.budget(tokens), budget)
    assert torch.equal(selector.select(tokens), naive_top(tokens.score(selector.ranking), tokens, budget))


@relaxed
@given(st.data())
def test_ranked_selectors_expect_exactly_what_they_keep(batches, ranked, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(ranked)
    for image, count in per_image(tokens, selector.select(tokens)):
        assert selector.expected(image) == selector.size(image) == count


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


@relaxed
@given(st.data())
def test_union_and_intersection_are_those_of_sets(batches, selectors, data):
    tokens, a, b = data.draw(batches(min_images=1)), data.draw(selectors), data.draw(selectors)
    left, right = sets(a.select(tokens)), sets(b.select(tokens))
    assert sets((a | b).select(tokens)) == [x | y for x, y in zip(left, right, strict=True)]
    assert sets((a & b).select(tokens)) == [x & y for x, y in zip(left, right, strict=True)]
    assert sets((a | a).select(tokens)) == sets((a & a).select(tokens)) == left


@relaxed
@given(st.data())
def test_fill_takes_the_left_side_first_and_stays_in_the_budget(batches, selectors, ranked, naive_top, data):
    tokens, a, b = data.draw(batches(min_images=1)), data.draw(selectors), data.draw(ranked)
    first, filled, budget = a.select(tokens), (a >> b).select(tokens), b.budget(tokens)
    assert torch.equal(filled, naive_top(tokens.score(b.ranking), tokens, budget, first))
    counts, wanted = per_group(tokens, filled), per_group(tokens, first)
    assert (counts <= budget).all()
    fits = (wanted <= budget).gather(1, tokens.geometry.image)
    assert not (first & fits & ~filled).any()
    assert not (filled & ~fits & ~first).any()


@relaxed
@given(st.data())
def test_a_fixed_union_is_the_union_and_the_next_best(batches, selectors, ranked, naive_top, data):
    tokens, a, b = data.draw(batches(min_images=1)), data.draw(ranked), data.draw(selectors)
    union = (a | b).select(tokens)
    limit = a.budget(tokens) + per_group(tokens, b.select(tokens))
    expected = naive_top(tokens.score(a.ranking), tokens, limit, union)
    assert torch.equal(Union(a, b, fixed=True).select(tokens), expected)
    assert not (union & ~expected).any()
    if not hasattr(b, "ranking"):
        assert torch.equal(Union(b, a, fixed=True).select(tokens), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_union_of_feather_keeps_218_to_299_of_729(candidates, seed):
    tokens = candidates([[(1, 27, 27)]], answers={NO_ROPE.signal: torch.rand(1, 729, generator=seeded(seed))})
    image = ImageTokens(picture_of((1, 27, 27)), 729.0)
    union = Top(NO_ROPE, keep=0.30) | Grid(stride=3)
    selected, grid = sets(union.select(tokens))[0], sets(Grid(3).select(tokens))[0]
    assert 218 <= len(selected) <= 299
    assert len(grid) == 81
    assert grid <= selected
    assert union.size(image) is None
    assert union.expected(image) == pytest.approx(218 + 81 * (1 - 218 / 729))
    fixed = Union(Top(NO_ROPE, keep=0.30), Grid(stride=3), fixed=True)
    assert int(fixed.select(tokens).sum()) == fixed.size(image) == fixed.expected(image) == 299


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_second_stage_of_feather_keeps_9_percent_of_the_survivors(candidates):
    rows = torch.rand(2, 1, 729, generator=seeded(0))
    whole = candidates([[(1, 27, 27)]], answers={NO_ROPE.signal: rows[0]})
    survivors = (Top(NO_ROPE, 0.3) | Grid(3)).select(whole)
    later = candidates([[(1, 27, 27)]], present=survivors, answers={NO_ROPE.signal: rows[1]})
    last = Top(NO_ROPE, 0.09, of="current").select(later)
    assert int(last.sum()) == int(0.09 * int(survivors.sum()))
    assert sets(last)[0] < sets(survivors)[0]


def test_operators_nest_from_left_to_right():
    a, b, c = Top(ROPE, 0.5), Grid(2), Random(0.5)
    assert a | b | c == Union(Union(a, b), c)
    assert a & b | c == Union(Intersection(a, b), c)
    assert b >> a | c == Union(Fill(b, a), c)


def test_nothing_keeps_nothing(candidates):
    image = ImageTokens(picture_of((1, 2, 2)), 4.0)
    tokens = candidates([[(1, 2, 2)]], present=[[True, False, True, True]])
    assert not Nothing().select(tokens).any()
    assert torch.equal(Everything().select(tokens), tokens.present)
    assert Nothing().size(image) == Nothing().expected(image) == 0


@relaxed
@given(st.data())
def test_given_tokens_stay_where_they_are_still_there(batches, data):
    tokens = data.draw(batches())
    chosen = torch.rand(tokens.present.shape, generator=seeded(data.draw(st.integers(0, 1000)))) < 0.5
    chosen &= tokens.geometry.exists
    indices = [row.nonzero().flatten() for row in chosen]
    assert torch.equal(Given(chosen).select(tokens), chosen & tokens.present)
    assert torch.equal(Given(indices).select(tokens), chosen & tokens.present)


def test_given_tokens_cannot_be_planned():
    with pytest.raises(PruningError, match="cannot be planned"):
        Given(torch.ones(1, 1, dtype=torch.bool)).expected(ImageTokens(picture_of((1, 1, 1)), 1.0))


def test_left_by_keeps_the_survivors_of_the_other_schedule(candidates):
    other = Schedule(Stage(8, Grid(3)), Stage(16, Top(ROPE, 0.1, of="current")))
    selector = LeftBy(Survivors(other))
    answer = torch.tensor([[True, True, False, False]])
    tokens = candidates([[(1, 2, 2)]], present=[[False, True, True, True]], answers={Survivors(other): answer})
    assert sets(selector.select(tokens)) == [{1}]
    assert list(selector.signals()) == [Survivors(other)]
    assert selector.expected(ImageTokens(picture_of((1, 27, 27)), 729.0)) == 8


def test_signals_of_a_composed_selector_are_those_of_its_parts():
    selector = (Top(ROPE, 0.5) | Grid(2)) >> Top(KNNDensity(), 0.2) | Random(0.1)
    assert list(selector.criteria()) == [ROPE, KNNDensity(), RandomScore(0)]
    assert list(selector.signals()) == [Attention(), Features()]


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
        (lambda: Top(ROPE, 0.5) >> Grid(3), "Grid(stride=3)"),
        (lambda: Fill(Grid(3), Grid(2)), "Grid(stride=2)"),
        (lambda: Union(Grid(2), Grid(3), fixed=True), "needs a ranked side"),
    ],
)
def test_bad_parameters_are_named(make, named):
    with pytest.raises(PruningError) as error:
        make()
    assert named in str(error.value)
