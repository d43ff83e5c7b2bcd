from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import Grid, LastTokenAttention, Merger, Pool, PruningError, Stage, Top, VisualLayout
from feathervlm.core.candidates import Candidates
from feathervlm.core.layout import Plane
from feathervlm.core.mergers.nearest import Nearest
from feathervlm.core.signals import Attention, Features

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
STRIDES = st.integers(1, 4) | st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4))


@dataclass(frozen=True)
class Weighted(Pool):
    """Every token with its score, not normalised."""

    def signals(self):
        return LastTokenAttention().signals()

    def shares(self, tokens, groups):
        return tokens.score(LastTokenAttention()).nan_to_num()


@dataclass(frozen=True)
class Anywhere(Merger):
    """Targets of no sense at all."""

    seed: int

    def targets(self, tokens, kept):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(-1, max(kept.shape[1], 1), kept.shape, generator=generator).clamp(max=kept.shape[1] - 1)


@st.composite
def some_batches(draw, batches):
    """Batches with any visual token at all; no merger is asked about others."""
    return draw(batches().filter(lambda tokens: tokens.present.shape[1]))


def some_of(tokens, seed):
    draws = torch.rand(tokens.present.shape, generator=torch.Generator().manual_seed(seed))
    return tokens.present & (draws < 0.4)


def states_of(tokens, seed, dim=3):
    return torch.randn(*tokens.present.shape, dim, generator=torch.Generator().manual_seed(seed))


def naive_pool(tokens, kept, stride):
    """Where each token goes, by a search for the first kept token of its block."""
    frame, row, col = (1, stride, stride) if isinstance(stride, int) else stride
    place, groups = tokens.geometry, np.full(kept.shape, -1)
    for b, v in np.ndindex(*kept.shape):
        sides = [(place.image, 1), (place.plane, 1), (place.frame, frame), (place.row, row), (place.col, col)]
        block = [int(side[b, v]) // step for side, step in sides]
        same = (
            t for t in range(kept.shape[1]) if kept[b, t] and [int(side[b, t]) // step for side, step in sides] == block
        )
        if kept[b, v]:
            groups[b, v] = v
        elif tokens.present[b, v]:
            groups[b, v] = next(same, -1)
    return groups


def naive_sums(states, groups, shares):
    sums = np.zeros(states.shape)
    for b, v in np.ndindex(*groups.shape):
        if groups[b, v] >= 0:
            sums[b, groups[b, v]] += np.asarray(states[b, v], dtype=np.float64) * float(shares[b, v])
    return sums


@relaxed
@given(st.data(), STRIDES, st.integers(0, 1000))
def test_pooling_agrees_with_a_search(batches, data, stride, seed):
    tokens = data.draw(some_batches(batches))
    kept = Grid(stride).select(tokens) if data.draw(st.booleans()) else some_of(tokens, seed)
    groups = Pool(stride).groups(tokens, kept)
    expected = naive_pool(tokens, kept, stride)
    assert groups.tolist() == expected.tolist()
    states = states_of(tokens, seed)
    sizes = [np.bincount(row[row >= 0], minlength=len(row) + 1) for row in expected]
    shares = np.array([[1 / max(size[g], 1) for g in row] for size, row in zip(sizes, expected, strict=True)])
    pooled = Pool(stride).combine(states, groups, tokens)
    np.testing.assert_allclose(pooled, naive_sums(states, expected, shares.reshape(expected.shape)), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("side", [6, 7])
def test_pooling_is_torch_s(candidates, side, stride):
    tokens = candidates([[(2, side, side)]])
    states = states_of(tokens, 0, 5)
    kept = Grid(stride).select(tokens)
    pooled = Pool(stride).combine(states, Pool(stride).groups(tokens, kept), tokens)
    frames = states.view(2, side, side, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.avg_pool2d(frames, stride, ceil_mode=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled[kept], expected.reshape(-1, 5))
    assert not pooled[~kept].any()


def test_tiles_and_planes_are_pooled_by_the_cells_they_show():
    plane = Plane((1, 4, 4), tiles=(2, 2))
    overview = Plane((1, 2, 2))
    layout = VisualLayout(torch.ones(1, 20, dtype=torch.bool), [[(overview, plane)]])
    place = layout.geometry()
    tokens = Candidates(place, place.exists, None)
    groups = Pool(2).groups(tokens, Grid(2).select(tokens))
    # Tiles of 2 x 2 follow each other, so every tile is a block.
    assert groups[0].tolist() == [0] * 4 + [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4


@relaxed
@given(st.data(), st.integers(0, 1000))
def test_groups_are_kept_tokens_of_the_same_image_whatever_a_merger_says(batches, data, seed):
    tokens = data.draw(some_batches(batches))
    kept = some_of(tokens, seed)
    groups = data.draw(st.sampled_from([Anywhere(seed), Nearest(Features()), Pool(2)])).groups(tokens, kept)
    for b, v in np.ndindex(*groups.shape):
        target = int(groups[b, v])
        if kept[b, v]:
            assert target == v
        elif not tokens.present[b, v]:
            assert target == -1
        elif target >= 0:
            assert kept[b, target]
            assert tokens.geometry.image[b, target] == tokens.geometry.image[b, v]


@relaxed
@given(st.data(), st.integers(0, 1000))
def test_a_batch_is_its_samples_one_by_one(batches, alone, data, seed):
    tokens = data.draw(some_batches(batches))
    merger = data.draw(st.sampled_from([Nearest(Features()), Nearest(Features(), "onto"), Pool(2), Weighted(3)]))
    tokens.signals.answers[Features()] = states_of(tokens, seed + 1, 4)
    kept, states = some_of(tokens, seed), states_of(tokens, seed)
    groups = merger.groups(tokens, kept)
    together = merger.combine(states, groups, tokens)
    for sample in range(len(kept)):
        single = alone(tokens, sample)
        width = single.present.shape[1]
        if not width:
            continue
        one = merger.groups(single, kept[sample : sample + 1, :width])
        assert one[0].tolist() == groups[sample, :width].tolist()
        merged = merger.combine(states[sample : sample + 1, :width], one, single)
        assert torch.equal(merged[0], together[sample, :width])


def test_other_ways_to_combine_need_shares_alone(candidates):
    features = torch.tensor([[[1.0, 0], [0, 1], [1, 0.1], [1, 0.2], [0.1, 1]]])
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]])
    tokens = candidates([[(1, 1, 5)]], answers={Features(): features, Attention(): scores})
    kept = torch.tensor([[True, True, False, False, False]])
    states = torch.tensor([[[10.0], [20], [1], [3], [5]]])
    mean, onto = Nearest(Features()), Nearest(Features(), "onto")
    groups = mean.groups(tokens, kept)
    assert groups.tolist() == [[0, 1, 0, 0, 1]]
    assert mean.combine(states, groups, tokens)[0, :2, 0].tolist() == pytest.approx([14 / 3, 12.5])
    assert onto.combine(states, groups, tokens)[0, :2, 0].tolist() == pytest.approx([12, 25])
    weighted = Weighted((1, 1, 3)).combine(states, groups, tokens)
    assert weighted[0, :2, 0].tolist() == pytest.approx([1 + 0.3 + 1.2, 4 + 2.5])
    assert list(Stage(1, Top(LastTokenAttention(), 2), merge=mean).signals()) == [Attention(), Features()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_groups_of_one_keep_every_bit_and_large_ones_the_mean(candidates, dtype):
    tokens = candidates([[(1, 32, 32)]])
    states = states_of(tokens, 3, 4).to(dtype)
    alone = Pool(1).combine(states, Pool(1).groups(tokens, tokens.present), tokens)
    assert alone.dtype == dtype
    assert torch.equal(alone, states)
    groups = Pool(32).groups(tokens, Grid(32).select(tokens))
    merged = Pool(32).combine(states + 1, groups, tokens)[0, 0]
    exact = (states + 1).double().mean(1)[0]
    torch.testing.assert_close(merged.double(), exact, atol=max(torch.finfo(dtype).eps, 1e-6), rtol=0)


def test_gradients_flow_to_every_member(candidates):
    tokens = candidates([[(1, 3, 3)], [(1, 2, 2)]])
    groups = Pool(2).groups(tokens, Grid(2).select(tokens))
    states = states_of(tokens, 0, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda states: Pool(2).combine(states, groups, tokens), states)


@pytest.mark.parametrize("stride", [0, -1, 2.5, True, None, (1, 2)])
def test_a_bad_stride_is_named(stride):
    with pytest.raises(PruningError, match="stride="):
        Pool(stride)
