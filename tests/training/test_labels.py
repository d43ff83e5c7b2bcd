"""Labels say what a patch itself shows, for every thing alike."""

import numpy as np
import pytest
import torch

from training.labels import (
    DENSE,
    EDGES,
    EMPTY,
    FAR,
    MOST,
    NOTHING,
    REACH,
    STEP,
    dense_labels,
    global_labels,
    patch_weights,
    shown,
)
from training.vision import DETAIL, content
from training.world.scenes import COLOURS, SHAPES, SIDE, SIZES, draw

PATCH = 12
ACROSS = SIDE // PATCH


def test_a_patch_has_the_labels_of_the_thing_that_it_shows():
    scene = draw(np.random.default_rng(3))
    owner, labels = shown(scene, PATCH), dense_labels(scene, PATCH)
    column = {name: labels[:, number] for number, name in enumerate(DENSE)}
    for cell, number in enumerate(owner):
        y, x = divmod(cell, ACROSS)
        part = scene.owner[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
        counts = np.bincount(part[part >= 0], minlength=len(scene.items))
        if number < 0:
            assert (column["colour"][cell], column["shape"][cell]) == (len(COLOURS), len(SHAPES))
            assert counts.max() < PATCH**2 / 4
            continue
        item = scene.items[number]
        assert list(COLOURS)[column["colour"][cell]] == item.colour
        assert SHAPES[column["shape"][cell]] == item.shape
        assert SIZES[column["size"][cell]] == item.size
        assert column["digit"][cell] == (NOTHING if item.digit is None else item.digit)
        own_middle = tuple(int(value) // PATCH for value in item.centre) == (x, y)
        assert column["middle"][cell] == own_middle
        assert counts[number] == counts.max() or own_middle


def test_edges_are_relative_to_the_patch_and_only_where_they_are_near():
    scene = draw(np.random.default_rng(4))
    owner, labels = shown(scene, PATCH), dense_labels(scene, PATCH)
    near = 0
    for cell in (owner >= 0).nonzero()[0]:
        y, x = divmod(int(cell), ACROSS)
        box = scene.items[owner[cell]].box
        for role, name in enumerate(EDGES):
            distance = box[role] - ((x, y, x, y)[role] * PATCH + PATCH / 2)
            label = labels[cell, list(DENSE).index(name)]
            if -REACH <= distance < REACH:
                assert label == int((distance + REACH) // STEP)
                near += 1
            else:
                assert label == FAR
    assert 0.3 < near / (4 * (owner >= 0).sum()) < 0.9


def test_no_patch_of_a_large_thing_carries_its_whole_box():
    wide = 0
    for seed in range(4):
        scene = draw(np.random.default_rng(seed))
        owner, labels = shown(scene, PATCH), dense_labels(scene, PATCH)
        for number, item in enumerate(scene.items):
            if item.box[2] - item.box[0] > 2 * REACH:
                cells = owner == number
                left, right = (labels[cells, list(DENSE).index(name)] for name in ("left", "right"))
                assert ((left == FAR) | (right == FAR)).all()
                wide += 1
    assert wide > 5


def test_the_weights_of_a_thing_add_up_to_the_root_of_its_patches():
    scene = draw(np.random.default_rng(4))
    owner, weights = shown(scene, PATCH), patch_weights(scene, PATCH)
    assert weights[owner < 0] == pytest.approx(EMPTY)
    for number in set(owner) - {-1}:
        assert weights[owner == number].sum() == pytest.approx((owner == number).sum() ** 0.5)


def test_the_scene_is_counted():
    scene = draw(np.random.default_rng(5))
    counts = dict(zip((*COLOURS, *SHAPES), global_labels(scene)[1:], strict=True))
    for colour in COLOURS:
        assert counts[colour] == min(MOST, sum(item.colour == colour for item in scene.items))


def test_the_content_of_a_patch_is_its_own_pixels():
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    found = content(pixels, ACROSS**2)
    y, x = 5, 9
    part = pixels[0, :, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
    squares = part.unflatten(1, (-1, DETAIL)).unflatten(3, (-1, DETAIL)).mean((2, 4))
    torch.testing.assert_close(found[0, y * ACROSS + x], squares.permute(1, 2, 0).flatten())
