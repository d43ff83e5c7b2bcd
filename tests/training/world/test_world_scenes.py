"""Scenes follow from their seed alone, contain what they say, and prefer no part of the picture."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from training.world import paint, scenes
from training.world.scenes import CLUTTERED, COLOURS, LOCKED, SEEN, SHAPES, SIDE, UNSEEN, arrange, draw

WORLDS = {"seen": SEEN, "cluttered": CLUTTERED, "unseen": UNSEEN}


def test_a_seed_draws_the_scenes_that_it_always_drew():
    """The weights and every held-out question rest on these very scenes."""
    digest = hashlib.sha256()
    for seed in range(2):
        for world in WORLDS.values():
            scene = draw(np.random.default_rng(seed), world)
            digest.update(repr((scene.items, scene.background)).encode())
            digest.update(scene.pixels.tobytes() + scene.owner.tobytes())
    assert digest.hexdigest()[:16] == "461280e5b6c39638"


def test_another_seed_draws_another_scene(drawn):
    assert len({scene.pixels.tobytes() for scene in drawn["seen"]}) == len(drawn["seen"])


@pytest.mark.parametrize("name", WORLDS)
def test_a_box_is_the_extent_of_the_visible_pixels(name, drawn):
    for scene in drawn[name]:
        assert scene.owner.max() == len(scene.items) - 1
        for number, item in enumerate(scene.items):
            rows, columns = (scene.owner == number).nonzero()
            assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("name", WORLDS)
def test_a_scene_contains_as_many_different_things_as_its_world_says(name, drawn):
    counts = set()
    for scene in drawn[name]:
        counts.add(len(scene.items))
        assert len({(item.shape, item.colour, item.size) for item in scene.items}) == len(scene.items)
        assert all((item.digit is None) == (item.shape != "sign") for item in scene.items)
    assert counts <= set(WORLDS[name].counts)
    assert len(counts) >= 2


@pytest.mark.parametrize("name", WORLDS)
def test_no_more_of_a_thing_is_hidden_than_allowed_and_no_digit_is(name):
    world, partly, locked = WORLDS[name], 0, 0
    for seed in range(6):
        _, arrangement = scenes._arrange(np.random.default_rng(seed), world)
        for number, (x, y, mask) in enumerate(arrangement.places, 1):
            window = arrangement.seen[y : y + mask.shape[0], x : x + mask.shape[1]]
            share = (window[mask] == number).mean()
            assert share >= 1 - world.hidden
            partly += share < 0.95
            digit = arrangement.digits[number - 1]
            if digit is not None:
                rows, columns, _ = paint.glyph(digit, *mask.shape)
                assert (window[rows, columns] == number).all()
        locked += (arrangement.codes == LOCKED).any()
    # Occlusion is common, as in photographs.
    assert partly > 6 * 3
    assert locked >= 4


@pytest.mark.parametrize("name", WORLDS)
def test_things_have_the_sizes_of_their_words(name):
    world = WORLDS[name]
    spans = {"small": [], "large": []}
    for seed in range(6):
        _, arrangement = scenes._arrange(np.random.default_rng(seed), world)
        for (_, _, size), (_, _, mask) in zip(arrangement.looks, arrangement.places, strict=True):
            spans[size].append(max(mask.shape))
    # A turned square is up to 1.22 spans wide and a turned star as little as 0.8, and both may be stretched.
    for size, (low, high) in (("small", world.small), ("large", world.large)):
        assert 0.75 * low <= min(spans[size])
        assert max(spans[size]) <= 1.35 * high
    assert max(spans["small"]) < min(spans["large"])
    assert len(spans["large"]) > 6 * 4
    # Leaves, which have no names, have smaller spans than every thing.
    assert world.small[0] >= 1.5 * paint.LARGEST_LEAF


def test_large_things_follow_a_power_law():
    rng = np.random.default_rng(0)
    spans = np.array([scenes._span(rng, SEEN, "circle", "large") for _ in range(4000)])
    low, high = SEEN.large
    assert (spans.min(), spans.max()) == (low, high)
    # With an exponent of -2, equally many spans are in the parts between low, their harmonic mean and high.
    middle = 2 / (1 / (low - 0.5) + 1 / (high + 0.5))
    assert abs((spans < middle).mean() - 0.5) < 0.03


def test_sizes_and_counts_of_the_unseen_split_do_not_occur_in_training():
    for world in (SEEN, CLUTTERED):
        assert not set(world.counts) & set(UNSEEN.counts)
        for low, high in (UNSEEN.small, UNSEEN.large):
            assert all(high < other_low or other_high < low for other_low, other_high in (world.small, world.large))


def test_things_are_painted_in_their_colours(drawn):
    """The mean of a thing's pixels is nearer to its own colour than to most others, whatever its texture."""
    ranks = []
    palette = np.array(list(COLOURS.values()), float)
    for scene in drawn["seen"]:
        for number, item in enumerate(scene.items):
            mean = scene.pixels[scene.owner == number].astype(float).mean(0)
            distances = np.abs(palette - mean).sum(1)
            ranks.append((distances < distances[list(COLOURS).index(item.colour)]).sum())
    assert np.mean(np.array(ranks) == 0) > 0.75
    assert max(ranks) <= 5


def test_digits_differ():
    assert len({digit.tobytes() for digit in paint.DIGITS}) == 10


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.full
def test_things_prefer_no_part_of_the_picture(name):
    rng = np.random.default_rng(11)
    centres, looks = [], []
    for _ in range(150):
        items = arrange(rng, WORLDS[name])[1]
        centres += [item.centre for item in items]
        looks += [(item.shape, item.colour) for item in items]
    above = np.array(centres) > SIDE / 2
    # Four standard deviations of a fair coin: one false alarm in 16 000 runs, were the seed not fixed.
    assert np.abs(above.mean(0) - 0.5).max() < 4 * 0.5 / len(above) ** 0.5
    for axis in (0, 1):
        thirds = np.histogram(np.array(centres)[:, axis], bins=3, range=(0, SIDE))[0] / len(centres)
        assert abs(thirds[0] - thirds[2]) < 0.04
    for values, kinds in zip(zip(*looks, strict=True), (SHAPES, COLOURS), strict=True):
        counts = Counter(values)
        assert all(abs(counts[kind] / len(values) - 1 / len(kinds)) < 0.04 for kind in kinds)
