from math import ceil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import VisualLayout
from feathervlm.core.positions import moved

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
POLICIES = [
    ("preserve", "renumber", "shuffle", "renumber"),
    ("stretch", "shuffle", "renumber"),
    ("shuffle", "stretch", "preserve", "stretch"),
    ("renumber", "renumber", "shuffle"),
]


def naive(policy, places, images, left, seed):
    """The places of one sample's tokens: {position: place} for those that are left, from the definitions."""
    draws = torch.rand(sum(map(len, images)), generator=torch.Generator().manual_seed(seed)).tolist()
    number = {position: n for n, position in enumerate(position for image in images for position in image)}
    if policy == "renumber":
        return {position: sum(other < place for other in places.values()) for position, place in places.items()}
    new = dict(places)
    for image in images:
        here = [position for position in image if position in left]
        if policy == "shuffle":
            takers = sorted(here, key=lambda position: draws[number[position]])
            new |= {taker: places[position] for taker, position in zip(takers, here, strict=True)}
        elif policy == "stretch" and here:
            index = {position: image.index(places[position]) for position in here}
            last = max(index.values()) or 1
            new |= {position: image[ceil(index[position] * (len(image) - 1) / last)] for position in here}
    return new


@st.composite
def prompts(draw):
    """Visual positions of each image of a few samples, with text around and sometimes inside images."""
    samples = []
    for _ in range(draw(st.integers(1, 3))):
        images, position = [], draw(st.integers(0, 3))
        for _ in range(draw(st.integers(0, 2))):
            gap = draw(st.sampled_from([0, 3]))  # a line break after so many tokens
            rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 4))
            image = []
            for token in range(rows * cols):
                position += bool(gap and token and token % gap == 0)
                image.append(position)
                position += 1
            images.append(((1, rows, cols), image))
            position += draw(st.integers(0, 2))
        samples.append((images, position + 2))
    return samples


def layout_of(samples):
    length = max(length for _, length in samples)
    mask = torch.zeros(len(samples), length, dtype=torch.bool)
    for row, (images, _) in enumerate(samples):
        mask[row, [position for _, image in images for position in image]] = True
    return VisualLayout(mask, [[shape for shape, _ in images] for images, _ in samples])


@relaxed
@given(prompts(), st.sampled_from(POLICIES), st.integers(0, 1000))
def test_any_sequence_of_stages_agrees_with_the_definitions(samples, policies, seed):
    layout = layout_of(samples)
    length, generator = layout.mask.shape[1], torch.Generator().manual_seed(seed)
    places, present = torch.arange(length).repeat(len(samples), 1), layout.geometry().exists
    expected = [{position: position for position in range(length)} for _ in samples]
    for stage, policy in enumerate(policies):
        present = present & (torch.rand(present.shape, generator=generator) < 0.8)
        places = moved(policy, places, layout.positions(), layout.geometry(), present, stage)
        assert places.min() >= 0
        assert places.max() < length
        for sample, (images, _) in enumerate(samples):
            images = [image for _, image in images]
            visual = {position for image in images for position in image}
            left = set(layout.positions()[sample][present[sample]].tolist())
            before = {p: place for p, place in expected[sample].items() if p in left or p not in visual}
            expected[sample] = naive(policy, before, images, left, stage)
            assert {p: int(places[sample, p]) for p in before} == expected[sample]
            assert len(set(expected[sample].values())) == len(before)


@pytest.mark.parametrize("start", [0, 5])
def test_stretching_is_the_papers_formula(start):
    layout = image_at(start)
    kept = [2, 3, 11, 20]
    left = torch.zeros(1, 30, dtype=torch.bool)
    left[0, kept] = True
    own = torch.arange(start + 32)[None]
    places = moved("stretch", own, layout.positions(), layout.geometry(), left)
    first, last = start, start + 29
    for index in kept:
        assert places[0, start + index] == ceil(index * (last - first) / 20) + first
    assert places[0, start + 20] == last
    assert torch.equal(places[0, start + 30 :], own[0, start + 30 :])


def image_at(start):
    place = torch.arange(start + 32)
    return VisualLayout(((place >= start) & (place < start + 30))[None], [[(1, 5, 6)]])


@pytest.mark.parametrize("policy", ["preserve", "renumber", "stretch"])
def test_keeping_everything_moves_nothing(policy):
    layout, own = image_at(4), torch.arange(36)[None]
    assert torch.equal(moved(policy, own, layout.positions(), layout.geometry(), layout.geometry().exists), own)


def test_a_seed_is_a_permutation_of_its_own_and_the_same_in_any_batch():
    layout, own = image_at(4), torch.arange(36)[None]
    whole = layout.geometry().exists
    taken = [moved("shuffle", own, layout.positions(), layout.geometry(), whole, seed)[0].tolist() for seed in range(6)]
    assert len(set(map(tuple, taken))) == 6
    assert all(sorted(places) == list(range(36)) for places in taken)
    two = VisualLayout(
        torch.cat([layout.mask, torch.ones(1, 36, dtype=torch.bool)]), [[(1, 5, 6)], [(1, 3, 4), (2, 3, 4)]]
    )
    both = moved("shuffle", own.repeat(2, 1), two.positions(), two.geometry(), two.geometry().exists, 3)
    assert both[0].tolist() == taken[3]
    assert sorted(both[1, :12].tolist()) == list(range(12))
    assert both[1, :12].tolist() != list(range(12))
