import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import Given, Grid, LastTokenAttention, PruningError, Schedule, Stage, Top
from feathervlm.core.mergers import nearest
from feathervlm.core.mergers.nearest import Nearest, Neighbors
from feathervlm.core.signals import Attention, EncoderKeys, Features
from feathervlm.core.spec import from_json, to_json

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
VECTORS, KEYS = Features(), EncoderKeys(-2)


def some_of(tokens, seed, share=0.4):
    draws = torch.rand(tokens.present.shape, generator=torch.Generator().manual_seed(seed))
    return tokens.present & (draws < share)


def states_of(tokens, seed, dim=3):
    states = torch.randn(*tokens.present.shape, dim, generator=torch.Generator().manual_seed(seed))
    return states.masked_fill(~tokens.present[..., None], float("nan"))  # nobody may read those


def cosine(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return round(a @ b / scale * nearest.EXACT) if scale else 0


def mates(tokens, b, v):
    """Other tokens of the same image that are there."""
    image = tokens.geometry.image[b]
    return [t for t in range(len(image)) if t != v and tokens.present[b, t] and image[t] == image[v]]


def naive_nearest(tokens, kept, vectors, states, form, exclude):
    groups, merged = np.full(kept.shape, -1), np.zeros(states.shape)
    for b, v in np.ndindex(*kept.shape):
        if kept[b, v]:
            groups[b, v] = v
        elif tokens.present[b, v]:
            open_ = [t for t in mates(tokens, b, v) if kept[b, t] and not exclude[b, t]]
            if open_:
                groups[b, v] = max(open_, key=lambda t: (cosine(vectors[b, v], vectors[b, t]), -t))
    for b, v in np.ndindex(*kept.shape):
        if kept[b, v]:
            went = [np.asarray(states[b, t], dtype=np.float64) for t in np.flatnonzero(groups[b] == v) if t != v]
            own = np.asarray(states[b, v], dtype=np.float64)
            merged[b, v] = own
            if went:
                merged[b, v] = np.mean([own, *went], 0) if form == "mean" else own + np.mean(went, 0)
    return groups, merged


def naive_neighbors(tokens, kept, vectors, states, weights, count):
    groups, best = np.full(kept.shape, -1), np.full(kept.shape, -np.inf)
    merged = np.zeros(states.shape)
    for b, v in np.ndindex(*kept.shape):
        if not kept[b, v]:
            continue
        groups[b, v] = v
        likeness = {t: cosine(vectors[b, v], vectors[b, t]) for t in mates(tokens, b, v)}
        merged[b, v] = states[b, v]
        for t in sorted(likeness, key=lambda t: (-likeness[t], t))[:count]:
            merged[b, v] += float(weights[b, t]) * np.asarray(states[b, t], dtype=np.float64)
            if not kept[b, t] and likeness[t] > best[b, t]:
                groups[b, t], best[b, t] = v, likeness[t]
    return groups, merged


@relaxed
@given(st.data(), st.sampled_from(["mean", "onto"]), st.integers(0, 1000), st.sampled_from([1, 9, 2**22]))
def test_nearest_is_a_search(batches, data, form, seed, block):
    tokens = data.draw(batches().filter(lambda tokens: tokens.present.shape[1]))
    kept, states, vectors = some_of(tokens, seed), states_of(tokens, seed), states_of(tokens, seed + 1, 4)
    if data.draw(st.booleans()):
        vectors = vectors.round()  # makes equals, and zeros
    tokens.signals.answers[KEYS] = vectors
    exclude = some_of(tokens, seed + 2) if data.draw(st.booleans()) else None
    merger = Nearest(KEYS, form, None if exclude is None else Given(exclude))
    usual, nearest.BLOCK = nearest.BLOCK, block
    groups = merger.groups(tokens, kept)
    nearest.BLOCK = usual
    none = torch.zeros_like(kept) if exclude is None else exclude
    expected, merged = naive_nearest(tokens, kept, vectors, states, form, none)
    assert groups.tolist() == expected.tolist()
    np.testing.assert_allclose(merger.combine(states, groups, tokens), merged, atol=1e-5)


@relaxed
@given(st.data(), st.integers(1, 6), st.integers(0, 1000), st.sampled_from([1, 9, 2**22]))
def test_neighbors_are_a_search(batches, data, count, seed, block):
    tokens = data.draw(batches().filter(lambda tokens: tokens.present.shape[1]))
    kept, states, vectors = some_of(tokens, seed), states_of(tokens, seed), states_of(tokens, seed + 1, 4)
    if data.draw(st.booleans()):
        vectors = vectors.round()
    tokens.signals.answers[KEYS] = vectors
    merger = Neighbors(KEYS, LastTokenAttention(), count)
    usual, nearest.BLOCK = nearest.BLOCK, block
    groups = merger.groups(tokens, kept)
    found = merger.combine(states, groups, tokens)
    nearest.BLOCK = usual
    weights = tokens.score(LastTokenAttention())
    expected, merged = naive_neighbors(tokens, kept, vectors, states, weights, count)
    assert groups.tolist() == expected.tolist()
    np.testing.assert_allclose(found, merged, atol=1e-5)


@relaxed
@given(st.data(), st.integers(0, 1000))
def test_neighbors_of_a_batch_are_those_of_its_samples(batches, alone, data, seed):
    tokens = data.draw(batches().filter(lambda tokens: tokens.present.shape[1]))
    tokens.signals.answers[KEYS] = states_of(tokens, seed + 1, 4)
    kept, states, merger = some_of(tokens, seed), states_of(tokens, seed), Neighbors(KEYS, LastTokenAttention(), 3)
    groups = merger.groups(tokens, kept)
    together = merger.combine(states, groups, tokens)
    for sample in range(len(kept)):
        single = alone(tokens, sample)
        width = single.present.shape[1]
        if width:
            one = merger.groups(single, kept[sample : sample + 1, :width])
            assert one[0].tolist() == groups[sample, :width].tolist()
            merged = merger.combine(states[sample : sample + 1, :width], one, single)
            torch.testing.assert_close(merged[0], together[sample, :width])


@pytest.mark.parametrize("width", [37, 64, 576])
def test_equal_vectors_go_to_the_first_kept_token(candidates, width):
    vectors = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(width)).expand(1, width, 64)
    tokens = candidates([[(1, 1, width)]], answers={VECTORS: vectors})
    kept = torch.zeros(1, width, dtype=torch.bool)
    kept[:, 3::5] = True
    groups = Nearest(VECTORS).groups(tokens, kept)
    assert groups[~kept].unique().tolist() == [3]


def test_means_leave_what_is_equal_everywhere_and_onto_doubles_it(candidates):
    tokens = candidates([[(1, 7, 7)]], answers={VECTORS: torch.randn(1, 49, 8)})
    kept, states = Grid(3).select(tokens), torch.full((1, 49, 5), 3.0)
    groups = Nearest(VECTORS).groups(tokens, kept)
    torch.testing.assert_close(Nearest(VECTORS).combine(states, groups, tokens)[kept], states[kept])
    doubled = Nearest(VECTORS, "onto").combine(states, groups, tokens)[kept].mean(-1)
    alone = torch.bincount(groups[0], minlength=49)[kept[0]] == 1
    torch.testing.assert_close(doubled, torch.where(alone, 3.0, 6.0))


def test_keeping_all_keeps_every_bit(candidates):
    tokens = candidates([[(1, 4, 4)]], answers={VECTORS: torch.randn(1, 16, 8)})
    states = torch.randn(1, 16, 5)
    for form in ("mean", "onto"):
        groups = Nearest(VECTORS, form).groups(tokens, tokens.present)
        assert torch.equal(Nearest(VECTORS, form).combine(states, groups, tokens), states)


@pytest.mark.parametrize(
    "merger", [Nearest(VECTORS), Nearest(VECTORS, "onto"), Neighbors(VECTORS, LastTokenAttention(), 3)]
)
def test_gradients_flow_to_every_member(candidates, merger):
    grids = [[(1, 3, 3)], [(1, 2, 2)]]
    tokens = candidates(grids, scores=torch.rand(2, 9))
    tokens.signals.answers[VECTORS] = torch.randn(2, 9, 4)
    kept = Grid(2).select(tokens)
    groups = merger.groups(tokens, kept)
    states = torch.randn(2, 9, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda states: merger.combine(states, groups, tokens), states)


def test_they_are_written_down_as_json():
    stage = Stage(0, Grid(2), merge=Nearest(KEYS, "onto", Top(LastTokenAttention(layer="K"), 0.5)))
    other = Stage(1, Grid(3), merge=Neighbors(Features("projected"), LastTokenAttention(), 4))
    assert from_json(to_json(Schedule(stage, other))) == Schedule(stage, other)
    assert list(stage.signals()) == [KEYS, Attention("K")]
    assert list(other.signals()) == [Features("projected"), Attention()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nearest(Attention()), "has no vectors"),
        (lambda: Nearest(KEYS, "sum"), "form='sum'"),
        (lambda: Nearest(KEYS, exclude=3), "exclude=3"),
        (lambda: Neighbors(3, LastTokenAttention()), "has no vectors"),
        (lambda: Neighbors(KEYS, KEYS), "weights="),
        (lambda: Neighbors(KEYS, LastTokenAttention(), 0), "count=0"),
    ],
)
def test_what_makes_no_sense_is_named(make, message):
    with pytest.raises(PruningError, match=message):
        make()
