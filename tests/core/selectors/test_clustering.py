import numpy as np
import pytest
import torch

import reference
from feathervlm import Grid, LastTokenAttention, PruningError, Top
from feathervlm.core import Clusters, TopAndClusters
from feathervlm.core.budget import ImageTokens
from feathervlm.core.layout import picture_of
from feathervlm.core.signals import Features

SCORES, HIDDEN = LastTokenAttention(), Features("hidden")
GRIDS, SPANS = [(1, 7, 7), (1, 5, 6)], (range(49), range(49, 79))


@pytest.fixture
def tokens(candidates):
    def make(grids, scores, vectors, present=None):
        answers = {SCORES.signal: torch.as_tensor(scores)[None], HIDDEN: torch.as_tensor(vectors)[None]}
        return candidates([grids], answers=answers, present=present)

    return make


def chosen_by(recycled, tokens):
    """The tokens that stay, where each goes, and what becomes of one-hot states."""
    kept = recycled.select(tokens)
    groups = Clusters(recycled).groups(tokens, kept)
    states = torch.eye(kept.shape[1])[None].masked_fill(~tokens.present[..., None], float("nan"))
    merged = Clusters(recycled).combine(states, groups, tokens)[0]
    return kept[0].nonzero().flatten().tolist(), groups[0].tolist(), merged


@pytest.mark.parametrize("group", [1, 2, 3, 10])
@pytest.mark.parametrize("share", [0.3, 0.05, 1.0])
@pytest.mark.parametrize("count", [2, 9, 30, 48, 49])
@pytest.mark.parametrize("levels", [10**6, 3])
def test_recycling_by_hand(tokens, levels, count, share, group):
    """With scores and vectors that have ties, too: these are whole numbers on a line, whose distances are exact."""
    draw = np.random.default_rng(count)
    scores = np.floor(draw.random(79) * levels).astype(np.float32)
    vectors = draw.integers(0, 4, (79, 1)).repeat(4, 1) if levels == 3 else draw.random((79, 8))
    vectors = vectors.astype(np.float32)
    recycled = TopAndClusters(Top(SCORES, count), share, group)
    kept, groups, merged = chosen_by(recycled, tokens(GRIDS, scores, vectors))
    expected, went = [], {}
    for grid, span in zip(GRIDS, SPANS, strict=True):
        stay, nearest = reference.recycled(scores[span], vectors[span].astype(np.float64), count, share, group)
        expected += [span[i] for i in stay]
        went |= {span[a]: span[b] for a, b in nearest.items()}
        image = ImageTokens(picture_of(grid), len(span))
        assert recycled.size(image) == recycled.expected(image) == len(stay)
    assert kept == expected
    assert groups == [went.get(i, i if i in expected else -1) for i in range(79)]
    for token in kept:
        members = [other for other, group in enumerate(groups) if group == token]
        mean = torch.zeros(79)
        mean[members] = 1 / len(members)
        torch.testing.assert_close(merged[token], mean)


def test_equals_go_to_the_lower_index(tokens):
    same = tokens([(1, 7, 7)], np.zeros(49, np.float32), np.ones((49, 4), np.float32))
    kept, groups, _ = chosen_by(TopAndClusters(Top(SCORES, 20)), same)
    assert kept == list(range(21))
    assert groups == [*range(20), *[20] * 9, *[-1] * 20]  # int(.3 * 29) + 1 of the 29 are recycled


def test_tokens_that_are_gone_have_no_say(tokens):
    draw, there = np.random.default_rng(0), np.arange(49) % 3 != 0
    scores, vectors = draw.random(49).astype(np.float32), draw.random((49, 4)).astype(np.float32)
    index = np.flatnonzero(there)
    stay, nearest = reference.recycled(scores[there], vectors[there].astype(np.float64), 6, group=3)
    scores[~there], vectors[~there] = np.nan, np.nan
    kept, groups, _ = chosen_by(
        TopAndClusters(Top(SCORES, 6), group=3), tokens([(1, 7, 7)], scores, vectors, there[None])
    )
    went = {index[a]: index[b] for a, b in nearest.items()}
    assert kept == index[stay].tolist()
    assert groups == [went.get(i, i if i in kept else -1) for i in range(49)]


def test_other_centres_are_given(tokens):
    """A token that stays counts as a centre only if it is one of those to be clustered."""
    draw = np.random.default_rng(1)
    scores, vectors = draw.random(49).astype(np.float32), draw.random((49, 4)).astype(np.float32)
    here, recycled = tokens([(1, 7, 7)], scores, vectors), TopAndClusters(Top(SCORES, 20))
    order = sorted(range(49), key=lambda i: -scores[i])
    pool, centre = order[20:29], order[25]
    kept = torch.zeros(1, 49, dtype=torch.bool)
    kept[0, [order[0], centre, order[40]]] = True
    groups = Clusters(recycled).groups(here, kept)[0].tolist()
    assert [i for i in range(49) if groups[i] == centre] == sorted(pool)
    kept[0, centre] = False
    assert Clusters(recycled).groups(here, kept)[0].tolist() == [i if kept[0, i] else -1 for i in range(49)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopAndClusters(Grid(2)),
        lambda: TopAndClusters(Top(SCORES, 4), share=0),
        lambda: TopAndClusters(Top(SCORES, 4), group=0),
        lambda: TopAndClusters(Top(SCORES, 4), features="text"),
        lambda: Clusters(Top(SCORES, 4)),
    ],
)
def test_bad_parts_are_refused(make):
    with pytest.raises(PruningError):
        make()
