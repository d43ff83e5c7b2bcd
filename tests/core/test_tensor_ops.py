"""Shared tensor operations, against naive loops and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core.tensor_ops import (
    density_peaks,
    first_n,
    lexsort,
    quantile,
    reserve_first,
    seeded_uniform,
    stable_cosines,
    unit_vectors,
)

relaxed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 9), st.integers(1, 3))
def test_lexsort_agrees_with_python(seed, batch, width, count):
    generator = torch.Generator().manual_seed(seed)
    keys = [torch.randint(0, 3, (batch, width), generator=generator) for _ in range(count)]
    start = torch.stack([torch.randperm(width, generator=generator) for _ in range(batch)])
    for row, order in enumerate(lexsort(keys, start).tolist()):
        assert order == sorted(start[row].tolist(), key=lambda i: [int(key[row, i]) for key in keys])
    assert torch.equal(lexsort(keys), lexsort(keys, torch.arange(width).expand(batch, -1)))


def test_the_first_tokens_of_a_pool():
    pool = torch.tensor([[True, True, False, True, True]])
    keys = [torch.tensor([[1, 0, 0, 0, 2]]), torch.tensor([[0, 5, 0, 4, 0]])]
    assert first_n(keys, pool, torch.tensor([2])).tolist() == [[False, True, False, True, False]]
    assert first_n(keys, pool, torch.tensor([9])).tolist() == pool.tolist()


def test_reserved_tokens_leave_the_pool_unless_they_exceed_the_budget():
    pool = torch.tensor([[True, True, False, True, True]])
    first = torch.tensor([[True, False, False, True, False]])
    reserved, rest, count = reserve_first(pool, first, torch.tensor([3]))
    assert (reserved.tolist(), count.tolist()) == (first.tolist(), [1])
    assert rest.tolist() == [[False, True, False, False, True]]
    reserved, rest, count = reserve_first(pool, first, torch.tensor([1]))
    assert (reserved.any().item(), rest.tolist(), count.tolist()) == (False, first.tolist(), [1])


def test_seeded_numbers_do_not_depend_on_the_batch():
    narrow, wide = seeded_uniform(torch.zeros(1, 4), 3), seeded_uniform(torch.zeros(2, 9), 3)
    assert torch.equal(narrow[0], wide[0, :4])
    assert torch.equal(wide[0], wide[1])


def test_absent_tokens_have_no_direction():
    vectors = torch.tensor([[[3.0, 4.0], [float("nan"), 1.0]]])
    units = unit_vectors(vectors, torch.tensor([[True, False]]))
    assert units.tolist() == [[[0.6, 0.8], [0.0, 0.0]]]
    assert stable_cosines(units, units).tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


@relaxed
@given(st.data(), st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 1]))
def test_quantiles_are_those_of_torch(data, share):
    counts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    scores = torch.rand(len(counts), max(counts), generator=generator)
    present = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    expected = [torch.quantile(row[:count], share) for row, count in zip(scores, counts, strict=True)]
    torch.testing.assert_close(quantile(scores, present, share)[:, 0], torch.stack(expected))


def naive_density_peaks(features, members, neighbors):
    features, scores = np.asarray(features, dtype=np.float64), np.zeros(members.shape)
    for b in range(len(features)):
        inside = [i for i in range(features.shape[1]) if members[b, i]]
        distance = {}
        for i in inside:
            for j in inside:
                difference = sum((features[b, i, d] - features[b, j, d]) ** 2 for d in range(features.shape[2]))
                distance[i, j] = np.sqrt(difference) / np.sqrt(features.shape[2])
        mean = {i: np.mean(sorted(distance[i, j] ** 2 for j in inside)[:neighbors]) for i in inside}
        for i in inside:
            denser = [distance[i, j] for j in inside if (mean[j], j) < (mean[i], i)]
            scores[b, i] = np.exp(-mean[i]) * (min(denser) if denser else max(distance.values()))
    return scores


@relaxed
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 12), st.integers(1, 7), st.floats(0, 1))
def test_density_peaks_agree_with_a_triple_loop_ties_included(seed, batch, width, neighbors, share):
    # Whole numbers on a line: every distance is exact in float32, so ties are ties in both.
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(0, 4, (batch, width, 1), generator=generator).float().expand(-1, -1, 4)
    members = torch.rand(batch, width, generator=generator) < share
    expected = naive_density_peaks(features, members, neighbors)
    scores = density_peaks(features, members, neighbors).where(members, 0)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_density_peaks_agree_with_a_triple_loop_in_general(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 20, 3, generator=generator)
    members = torch.rand(2, 20, generator=generator) < 0.8
    scores = density_peaks(features, members, 5).where(members, 0)
    np.testing.assert_allclose(scores, naive_density_peaks(features, members, 5), rtol=1e-4)


def test_of_equal_tokens_the_first_is_the_peak():
    features = torch.tensor([[[0.0], [0.0], [0.0], [3.0]]])
    scores = density_peaks(features, torch.ones(1, 4, dtype=torch.bool), 2)
    assert scores[0, 0] == 3  # densest, so its delta is the widest distance
    assert scores[0, 1:3].tolist() == [0, 0]
