import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import PruningError, VisualLayout
from feathervlm.core.layout import Plane, picture_of, tokens_of

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))


@st.composite
def planes(draw):
    tiles = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    sides = [draw(st.integers(1, 3)) * count for count in tiles]
    left, top = draw(st.sampled_from([0.0, 0.25])), draw(st.sampled_from([-0.5, 0.0]))
    return Plane((draw(st.integers(1, 2)), *sides), (left, top, 1.0, 1.5), tiles)


PICTURES = GRIDS | st.lists(planes(), min_size=1, max_size=3).map(tuple)


@st.composite
def layouts(draw):
    grids = draw(st.lists(st.lists(PICTURES, max_size=3), min_size=1, max_size=3))
    texts = st.integers(0, 3)
    rows = []
    for sample in grids:
        row = [False] * draw(texts)
        for entry in sample:
            row += [True] * tokens_of(picture_of(entry)) + [False] * draw(texts)
        rows.append(row)
    longest = max(map(len, rows))
    left = draw(st.booleans())
    padding = [[False] * (longest - len(row)) for row in rows]
    padded = [pad + row if left else row + pad for row, pad in zip(rows, padding, strict=True)]
    return VisualLayout(torch.tensor(padded, dtype=torch.bool).view(len(rows), longest), grids)


def cells(sample):
    for image, entry in enumerate(sample):
        for number, plane in enumerate(picture_of(entry)):
            frames, rows, cols = plane.shape
            high, wide = rows // plane.tiles[0], cols // plane.tiles[1]
            for frame in range(frames):
                for tile in range(plane.tiles[0] * plane.tiles[1]):
                    for place in range(high * wide):
                        row = tile // plane.tiles[1] * high + place // wide
                        yield image, number, frame, row, tile % plane.tiles[1] * wide + place % wide


@relaxed
@given(layouts())
def test_geometry_names_every_cell_tile_by_tile_in_raster_order(layout):
    place = layout.geometry()
    assert place.images == max(1, *(len(sample) for sample in layout.grids))
    axes = (place.image, place.plane, place.frame, place.row, place.col)
    for tensor in (place.exists, place.x, place.y, *axes):
        assert tensor.shape == (len(layout.grids), layout.width)
    for sample, grids in enumerate(layout.grids):
        coordinates = zip(*(axis[sample].tolist() for axis in axes), strict=True)
        expected = list(cells(grids))
        assert list(coordinates)[: len(expected)] == expected
        assert place.exists[sample].tolist() == [v < len(expected) for v in range(layout.width)]
        for v, (image, number, _, row, col) in enumerate(expected):
            plane = picture_of(grids[image])[number]
            left, top, right, bottom = plane.box
            assert place.x[sample, v].item() == pytest.approx(left + (right - left) * (col + 0.5) / plane.shape[2])
            assert place.y[sample, v].item() == pytest.approx(top + (bottom - top) * (row + 0.5) / plane.shape[1])


@relaxed
@given(layouts())
def test_positions_are_where_the_mask_is_true(layout):
    positions = layout.positions()
    for sample, row in enumerate(layout.mask.tolist()):
        expected = [position for position, visual in enumerate(row) if visual]
        assert positions[sample, : len(expected)].tolist() == expected
        assert layout.counts[sample] == len(expected)
    assert positions.shape[1] == layout.width == max(layout.counts)


@relaxed
@given(layouts(), st.integers(1, 3), st.integers(0, 3))
def test_fit_repeats_every_sample_and_appends_text(layout, beams, more):
    batch, sequence = layout.mask.shape
    query = torch.arange(batch)
    fitted = VisualLayout(layout.mask, layout.grids, query).fit(batch * beams, sequence + more)
    for row in range(batch * beams):
        source = row // beams
        assert fitted.mask[row].tolist() == layout.mask[source].tolist() + [False] * more
        assert fitted.pictures[row] == layout.pictures[source]
        assert fitted.query[row] == source


def test_fit_without_a_query_leaves_it_open():
    layout = VisualLayout(torch.ones(1, 2, dtype=torch.bool), [[(1, 1, 2)]])
    assert layout.fit(2, 3).query is None


def test_a_grid_of_two_sides_is_one_frame():
    layout = VisualLayout(torch.ones(1, 6, dtype=torch.bool), [[(2, 3)]])
    assert layout.shapes(0) == [(1, 2, 3)]


def test_a_mask_of_numbers_is_read_as_bool():
    layout = VisualLayout(torch.tensor([[0, 1, 1]]), [[(1, 1, 2)]])
    assert layout.mask.dtype == torch.bool
    assert layout.positions().tolist() == [[1, 2]]


def test_a_batch_without_images_has_no_width():
    layout = VisualLayout(torch.zeros(2, 3, dtype=torch.bool), [[], []])
    assert layout.counts == (0, 0)
    assert layout.positions().shape == (2, 0)
    assert layout.geometry().exists.shape == (2, 0)
    assert layout.geometry().images == 1


def test_to_keeps_everything():
    layout = VisualLayout(torch.ones(1, 2, dtype=torch.bool), [[(1, 1, 2)]], torch.tensor([1]))
    moved = layout.to(torch.device("cpu"))
    assert (moved.pictures, moved.query.tolist()) == (layout.pictures, [1])
    assert torch.equal(moved.mask, layout.mask)


def test_a_trusted_layout_is_not_counted():
    VisualLayout(torch.ones(1, 2, dtype=torch.bool), [[(1, 1, 3)]], trusted=True)


@pytest.mark.parametrize(
    ("mask", "grids", "named"),
    [
        (torch.ones(1, 4), [[(1, 2, 3)]], ["Sample 0", "4 visual", "(1, 2, 3)", "6"]),
        (torch.eye(2), [[(1, 1, 1)], []], ["Sample 1", "1 visual", "0"]),
        (torch.ones(2, 4), [[(1, 2, 2)]], ["1 samples", "2 rows"]),
        (torch.ones(1, 4), [[(1, 0, 4)]], ["(1, 0, 4)"]),
        (torch.ones(1, 4), [[(4,)]], ["(4,)"]),
        (torch.ones(4), [[(1, 2, 2)]], ["(batch, sequence)"]),
        ([[True]], [[(1, 1, 1)]], ["(batch, sequence)"]),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(mask, grids, named):
    with pytest.raises(PruningError) as error:
        VisualLayout(mask, grids)
    assert all(part in str(error.value) for part in named)


def test_a_query_of_the_wrong_shape_is_refused():
    with pytest.raises(PruningError, match=r"query=tensor.*shape \(1,\)"):
        VisualLayout(torch.ones(1, 4), [[(1, 2, 2)]], torch.tensor([3, 3]))


@pytest.mark.parametrize(("batch", "sequence"), [(3, 4), (1, 4), (2, 3)])
def test_an_input_of_another_size_is_refused(batch, sequence):
    layout = VisualLayout(torch.ones(2, 4), [[(1, 2, 2)]] * 2)
    with pytest.raises(PruningError, match=f"2 x 4 tokens .* {batch} x {sequence};"):
        layout.fit(batch, sequence)


def test_tiles_of_unequal_size_are_an_error():
    with pytest.raises(PruningError, match="no \\(2, 2\\) equal tiles"):
        Plane((1, 4, 5), tiles=(2, 2))


def test_shapes_of_several_planes_are_one_entry():
    picture = (Plane((1, 1, 1)), Plane((1, 2, 2)))
    layout = VisualLayout(torch.ones(1, 7, dtype=torch.bool), [[picture, (1, 2)]])
    assert layout.shapes(0) == [((1, 1, 1), (1, 2, 2)), (1, 1, 2)]
