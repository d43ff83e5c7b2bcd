import pytest
import torch
from choices import NO_ROPE, ROPE, per_group, per_image, relaxed, seeded, sets
from hypothesis import assume, given
from hypothesis import strategies as st

from feathervlm.core import Candidates, Chained, Grid, KNNDensity, PruningError, Random, RandomScore, Top
from feathervlm.core.budget import ImageTokens, kept
from feathervlm.core.layout import picture_of
from feathervlm.core.selectors.base import Fill, Intersection, Union
from feathervlm.core.signals import Attention, Features


@relaxed
@given(st.data())
def test_a_selection_is_a_subset_of_what_is_present(batches, selectors, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(selectors)
    keep = selector.select(tokens)
    assert keep.dtype == torch.bool
    assert keep.shape == tokens.present.shape
    assert not (keep & ~tokens.present).any()
    assert torch.equal(keep, selector.select(tokens))


@relaxed
@given(st.data())
def test_a_chain_is_two_stages(batches, selectors, data):
    tokens, first, second = data.draw(batches(min_images=1)), data.draw(selectors), data.draw(selectors)
    between = Candidates(tokens.geometry, first.select(tokens), tokens.signals)
    assert torch.equal(Chained(first, second).select(tokens), second.select(between))


@relaxed
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


@relaxed
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


def test_signals_of_a_composed_selector_are_those_of_its_parts():
    selector = (Top(ROPE, 0.5) | Grid(2)) >> Top(KNNDensity(), 0.2) | Random(0.1)
    assert list(selector.criteria()) == [ROPE, KNNDensity(), RandomScore(0)]
    assert list(selector.signals()) == [Attention(), Features()]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Top(ROPE, 0.5) >> Grid(3), "Grid(stride=3)"),
        (lambda: Fill(Grid(3), Grid(2)), "Grid(stride=2)"),
        (lambda: Union(Grid(2), Grid(3), fixed=True), "needs a ranked side"),
    ],
)
def test_bad_operands_are_named(make, named):
    with pytest.raises(PruningError) as error:
        make()
    assert named in str(error.value)
