"""Drawings: what is kept is bright, where it lies; scores have the colours of their order; boxes are where they are."""

import numpy as np
import pytest
from PIL import Image

from feathervlm.app.drawing import HEAT, SIDE, coloured, data_uri, heat_map, kept_patches
from feathervlm.app.layers import DROPPED, FROZEN, KEPT, MERGED, WAITING, PlaneView, ScoreMap

GREY = Image.new("RGB", (60, 30), (120, 120, 120))


def at(picture, x, y):
    """The colour at a place of the original picture."""
    scale = SIDE / 60
    return np.array(picture.getpixel((int(x * scale), int(y * scale))), int)


def test_kept_cells_are_bright_and_others_in_their_own_shades():
    frozen, waiting = (
        at(kept_patches(GREY, [PlaneView((0, 0, 60, 30), np.array([[[state]]], np.uint8))], 0), 30, 15)
        for state in (FROZEN, WAITING)
    )
    assert frozen[2] > frozen[1] > 2 * frozen[0] > 0, "frozen cells are teal"
    assert waiting[0] > waiting[1] > 2 * waiting[2] > 0, "waiting cells are amber"
    states = np.array([[[KEPT, DROPPED, MERGED]]], np.uint8)
    drawn = kept_patches(GREY, [PlaneView((0, 0, 45, 30), states)], 0)
    assert drawn.size == (SIDE, SIDE // 2)
    assert at(drawn, 7, 15).tolist() == [120, 120, 120]
    dropped, merged, outside = at(drawn, 22, 15), at(drawn, 37, 15), at(drawn, 55, 15)
    assert dropped.max() < 40
    assert merged[2] > 2 * merged[0] > 0, "merged cells are blue"
    assert outside.max() < dropped.max(), "what the model never saw is darkest"


def test_each_layer_has_its_own_cells_and_each_grid_its_row():
    states = np.stack([np.full((2, 2), KEPT, np.uint8), np.full((2, 2), DROPPED, np.uint8)])
    views = [PlaneView((0, 0, 60, 30), states), PlaneView((0, 0, 30, 30), states)]
    first, second = (kept_patches(GREY, views, layer) for layer in (0, 1))
    assert first.size == second.size == (SIDE, SIDE)
    assert at(first, 5, 5).tolist() == [120, 120, 120]
    assert at(second, 5, 5).max() < 40
    assert np.array_equal(np.asarray(kept_patches(GREY, [], 0))[5, 5], [120, 120, 120])


def test_boxes_are_drawn_on_their_edges():
    drawn = kept_patches(GREY, [], 0, {"#ff0000": (10, 5, 40, 25)})
    assert at(drawn, 10, 15).tolist() == [255, 0, 0]
    assert at(drawn, 25, 15).tolist() == [120, 120, 120]


def test_heat_goes_from_the_smallest_to_the_largest_score():
    scores = np.array([[0.0, 0.1, np.nan, 0.4]], np.float32)
    drawn = heat_map(GREY, ScoreMap((0, 0, 60, 30), scores))
    low, middle, absent, high = (at(drawn, x, 15) for x in (7, 22, 37, 52))
    assert low.sum() < middle.sum() < high.sum()
    assert absent.max() < 40
    flat = heat_map(GREY, ScoreMap((0, 0, 60, 30), np.full((1, 2), 0.5, np.float32)))
    assert np.ptp(np.asarray(flat), (0, 1)).max() == 0
    assert heat_map(GREY, ScoreMap((0, 0, 60, 30), np.full((1, 2), np.nan, np.float32))).size == (SIDE, SIDE // 2)


@pytest.mark.parametrize(("level", "colour"), [(0.0, HEAT[0]), (1.0, HEAT[-1])])
def test_the_ends_of_the_colours(level, colour):
    assert np.allclose(coloured(np.array([level])), colour)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (3000, 10)])
def test_any_shape_is_drawn(size):
    drawn = kept_patches(Image.new("RGB", size), [], 0)
    assert max(drawn.size) == SIDE
    assert data_uri(drawn).startswith("data:image/webp;base64,")
