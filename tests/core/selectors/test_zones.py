"""Zones and what surrounds a token, against plain Python and by hand."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference
from feathervlm.core import Given, Grid, LastTokenAttention, Top, VisualLayout
from feathervlm.core.budget import ImageTokens, kept
from feathervlm.core.candidates import Candidates
from feathervlm.core.criteria import variance
from feathervlm.core.criteria.variance import LocalVariance
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.layout import Plane, picture_of
from feathervlm.core.partition import part_of_each
from feathervlm.core.selectors.dilation import Dilate
from feathervlm.core.selectors.zones import Zone, quotas
from feathervlm.core.signals import Attention, Features

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROPE, NO_ROPE = LastTokenAttention(), LastTokenAttention(rope=False)
KEEPS = st.floats(0.01, 1) | st.integers(1, 40)


def sets(mask):
    return [set(row.nonzero().flatten().tolist()) for row in mask]


def cells_of(tokens, sample, image):
    """(token, plane, frame, row, col) of an image's tokens, those that are gone included."""
    place = tokens.geometry
    members = place.exists[sample] & (place.image[sample] == image)
    parts = (part[sample].tolist() for part in (place.plane, place.frame, place.row, place.col))
    coordinates = list(zip(*parts, strict=True))
    return [(token, *coordinates[token]) for token in members.nonzero().flatten().tolist()]


def zone_of(cells, cut, by):
    """A name for the zone of every cell."""
    if cut == "chunk":
        return reference.chunks(len(cells), by)
    names = []
    for _, plane, frame, row, col in cells:
        rows = 1 + max(cell[3] for cell in cells if cell[1] == plane)
        cols = 1 + max(cell[4] for cell in cells if cell[1] == plane)
        where = (row // by, col // by) if cut == "window" else (row * by // rows, col * by // cols)
        names.append((plane, frame, *where))
    return names


def by_hand(tokens, selector, weights, first):
    """The choice of `Zone`, with weights per zone as a function of the scores in it."""
    found = []
    scores = tokens.signals.answers[Attention()]
    for sample in range(len(tokens.present)):
        found.append(set())
        for image in range(tokens.geometry.images):
            cells = cells_of(tokens, sample, image)
            if not cells:
                continue
            names = zone_of(cells, selector.partition, selector.partition_size)
            here = [i for i, cell in enumerate(cells) if tokens.present[sample, cell[0]]]
            early = [i for i in here if first[sample, cells[i][0]]]
            base = len(cells) if selector.of == "original" else len(here)
            certain, pool, wanted = set(early), [i for i in here if i not in early], kept(selector.keep, base)
            if len(early) > wanted:
                certain, pool = set(), early
            else:
                wanted -= len(early)
            order = list(dict.fromkeys(names))
            if selector.partition != "chunk":
                order.sort()
            row = [float(scores[sample, cell[0]]) for cell in cells]
            inside = {name: [row[i] for i in pool if names[i] == name] for name in order}
            quota = reference.quotas(
                min(wanted, len(pool)), [weights(inside[name]) for name in order], list(map(len, inside.values()))
            )
            chosen = certain | reference.zoned(row, names, dict(zip(order, quota, strict=True)), pool)
            found[-1] |= {cells[i][0] for i in chosen}
    return found


@relaxed
@given(st.data(), KEEPS, st.sampled_from(["window", "grid", "chunk"]), st.integers(1, 4), st.booleans())
def test_zones_agree_with_plain_python(batches, data, keep, cut, by, equal):
    tokens = data.draw(batches(min_images=1))
    of = data.draw(st.sampled_from(["original", "current"]))
    share = data.draw(st.floats(0, 0.5))
    first = tokens.present & (torch.rand(tokens.present.shape, generator=torch.Generator().manual_seed(1)) < share)
    selector = Zone(ROPE, keep, cut, by, "equal" if equal else "proportional", of=of)

    def weights(scores):
        mean = sum(scores) / len(scores) if scores else 0.0
        return 1.0 if equal else max(mean, 0.0)

    expected = by_hand(tokens, selector, weights, first)
    assert sets((Given(first) >> selector).select(tokens)) == expected


@relaxed
@given(st.data(), st.sampled_from(["fraction", "weight"]))
def test_quotas_agree_with_exact_fractions(data, spare):
    zone = st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0, 3.0]) | st.floats(0, 5))
    rows = data.draw(st.lists(zone, min_size=1, max_size=8))
    sizes, weights = ([row[part] for row in rows] for part in (0, 1))
    wanted = data.draw(st.integers(0, sum(sizes)))
    found = quotas(torch.tensor([wanted]), torch.tensor([weights]), torch.tensor([sizes]), spare)[0].tolist()
    assert sum(found) == wanted
    assert all(0 <= count <= size for count, size in zip(found, sizes, strict=True))
    exact = reference.quotas(wanted, torch.tensor(weights).tolist(), sizes, spare)
    assert max(abs(a - b) for a, b in zip(found, exact, strict=True)) <= 1
    if all(weight in (0.0, 0.5, 1.0, 3.0) for weight in weights):
        assert found == exact


@pytest.mark.parametrize(
    ("wanted", "weights", "sizes", "spare", "expected"),
    [
        (6, [1, 1, 1], [9, 9, 9], "fraction", [2, 2, 2]),
        (7, [1, 1, 1], [9, 9, 9], "fraction", [3, 2, 2]),
        (7, [1, 2, 1], [9, 9, 9], "fraction", [2, 3, 2]),
        (7, [1, 2, 1], [9, 9, 9], "weight", [2, 4, 1]),
        (10, [8, 1, 1], [4, 9, 9], "fraction", [4, 3, 3]),
        (10, [8, 1, 1], [4, 4, 9], "fraction", [4, 3, 3]),
        (10, [8, 1, 1], [4, 2, 9], "fraction", [4, 2, 4]),
        (5, [1, 0, 0], [2, 9, 9], "fraction", [2, 2, 1]),
        (3, [0, 0, 0], [1, 1, 1], "fraction", [1, 1, 1]),
        (0, [1, 2, 3], [4, 4, 4], "weight", [0, 0, 0]),
    ],
)
def test_quotas_by_hand(wanted, weights, sizes, spare, expected):
    found = quotas(torch.tensor([wanted]), torch.tensor([weights], dtype=torch.float32), torch.tensor([sizes]), spare)
    assert found.tolist() == [expected]
    assert reference.quotas(wanted, weights, sizes, spare) == expected


def numbers(grid, cut, by):
    mask = torch.ones(1, grid[0] * grid[1] * grid[2], dtype=torch.bool)
    tokens = Candidates(VisualLayout(mask, [[grid]]).geometry(), mask, None)
    return part_of_each(ImageRows(tokens), cut, by).view(grid).tolist()


def test_zones_by_hand():
    assert numbers((1, 3, 5), "window", 2) == [[[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]]
    assert numbers((1, 3, 5), "grid", 2) == [[[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [2, 2, 2, 3, 3]]]
    assert numbers((2, 2, 2), "grid", 1) == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    assert numbers((1, 2, 2), "grid", 9) == [[[0, 1], [2, 3]]]
    assert numbers((1, 2, 4), "chunk", 3) == [[[0, 0, 0, 1], [1, 1, 2, 2]]]
    assert numbers((1, 1, 3), "chunk", 8) == [[[0, 1, 2]]]


@pytest.mark.parametrize(("cut", "by", "count"), [("window", 6, 16), ("grid", 4, 16), ("chunk", 16, 16)])
def test_windows_of_vscan_share_equally(random_tokens, cut, by, count):
    tokens = random_tokens([[(1, 24, 24)]])
    selected = Zone(ROPE, 96, cut, by).select(tokens)
    zone = part_of_each(ImageRows(tokens), cut, by)
    assert torch.bincount(zone[0][selected[0]]).tolist() == [6] * count
    uneven = torch.bincount(zone[0][Zone(ROPE, 100, cut, by).select(tokens)[0]]).tolist()
    assert uneven == [7] * 4 + [6] * 12


def test_regions_of_nuwa_keep_one_of_four(random_tokens):
    tokens = random_tokens([[(1, 24, 24)]])
    spread = Zone(ROPE, 0.25, "window", 2).select(tokens).view(12, 2, 12, 2)
    assert (spread.sum((1, 3)) == 1).all()


def test_zones_stay_where_they_were_when_tokens_leave(random_tokens):
    whole = random_tokens([[(1, 6, 6)]])
    left = random_tokens([[(1, 6, 6)]], present=Grid(2).select(whole))
    assert torch.equal(part_of_each(ImageRows(whole), "window", 3), part_of_each(ImageRows(left), "window", 3))


def test_one_zone_is_the_best_of_all(random_tokens):
    tokens = random_tokens([[(1, 6, 6), (1, 3, 3)], [(1, 4, 4)]])
    for cut, by in (("window", 99), ("grid", 1), ("chunk", 1)):
        for share in ("equal", "proportional", "softmax"):
            assert torch.equal(Zone(ROPE, 0.3, cut, by, share).select(tokens), Top(ROPE, 0.3).select(tokens))


def test_softmax_shares(candidates):
    scores = torch.tensor([[1.0] * 8 + [1.0 + torch.log(torch.tensor(3.0)).item()] * 8])
    tokens = candidates([[(1, 2, 8)]], scores=scores)
    assert sets(Zone(ROPE, 4, "chunk", 2, "softmax").select(tokens)) == [{0, 8, 9, 10}]


def test_another_criterion_may_weigh(candidates):
    answers = {Attention(): torch.arange(8.0)[None], Attention(rope=False): torch.tensor([[3.0] * 4 + [1.0] * 4])}
    tokens = candidates([[(1, 2, 4)]], answers=answers)
    assert sets(Zone(ROPE, 4, "chunk", 2, "proportional", NO_ROPE).select(tokens)) == [{1, 2, 3, 7}]


@relaxed
@given(st.data(), st.booleans())
def test_dilation_agrees_with_plain_python(batches, data, drop):
    tokens = data.draw(batches())
    chosen = torch.rand(tokens.present.shape, generator=torch.Generator().manual_seed(2)) < 0.2
    expected = []
    for sample in range(len(tokens.present)):
        expected.append(set())
        for image in range(tokens.geometry.images):
            cells = cells_of(tokens, sample, image)
            inner = {i for i, cell in enumerate(cells) if chosen[sample, cell[0]] and tokens.present[sample, cell[0]]}
            around = reference.dilated(inner, [cell[1:] for cell in cells])
            expected[-1] |= {cells[i][0] for i in around if tokens.present[sample, cells[i][0]]}
    assert sets(Dilate(Given(chosen)).select(tokens)) == expected


def test_dilation_does_not_wrap_around_a_row_or_into_another_image(candidates):
    tokens = candidates([[(1, 3, 3), (1, 3, 3)]])
    around = Dilate(Given([torch.tensor([3, 9])])).select(tokens)
    assert sets(around) == [{0, 3, 4, 6, 9, 10, 12}]
    assert sets(Dilate(Given([torch.tensor([4])]), [(0, 1), (-2, 0)]).select(tokens)) == [{4, 5}]
    assert Dilate(Top(ROPE, 0.5), [[0, 1]]) == Dilate(Top(ROPE, 0.5), ((0, 1),))


def test_dilation_follows_cells_not_the_order_of_tiles():
    picture = (Plane((1, 2, 2)), Plane((1, 4, 4), tiles=(2, 2)))
    mask = torch.ones(1, 20, dtype=torch.bool)
    tokens = Candidates(VisualLayout(mask, [[picture]]).geometry(), mask, None)
    place = tokens.geometry
    middle = ((place.plane == 1) & (place.row == 1) & (place.col == 1)).nonzero()[:, 1]
    found = Dilate(Given([middle])).select(tokens)[0].nonzero().flatten()
    cells = {(int(place.plane[0, i]), int(place.row[0, i]), int(place.col[0, i])) for i in found}
    assert cells == {(1, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)}


def test_dilation_is_expected_to_overlap():
    image = ImageTokens(picture_of((1, 10, 10)), 100.0)
    assert Dilate(Top(ROPE, 0.1)).expected(image) == pytest.approx(100 * (1 - 0.9**5))
    assert Dilate(Top(ROPE, 1.0)).expected(image) == 100
    assert Dilate(Top(ROPE, 0.1)).expected(ImageTokens(picture_of((1, 2, 2)), 0.0)) == 0
    assert Dilate(Top(ROPE, 0.1)).size(image) is None


@pytest.mark.parametrize("block", [1, 500, 10**9])
@pytest.mark.parametrize(("cut", "by"), [("chunk", 4), ("window", 3), ("grid", 2)])
def test_context_agrees_with_plain_python(random_tokens, cut, by, block, monkeypatch):
    monkeypatch.setattr(variance, "BLOCK", block)
    grids = [[(1, 7, 7), (1, 2, 3)], [(1, 5, 5)]]
    whole = random_tokens(grids)
    present = torch.rand(whole.present.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    tokens = random_tokens(grids, present=present)
    found = LocalVariance(ROPE, cut, by, alpha=0.5).score(tokens)
    for sample, images in enumerate(grids):
        for image in range(len(images)):
            cells = cells_of(tokens, sample, image)
            names = zone_of(cells, cut, by)
            here = [i for i, cell in enumerate(cells) if tokens.present[sample, cell[0]]]
            index = [cells[i][0] for i in here]
            scores = tokens.signals.answers[Attention()][sample, index].double()
            features = tokens.signals.answers[Features()][sample, index].numpy()
            variety = torch.tensor(reference.variety(features, [names[i] for i in here]))
            scale = scores.abs().mean() / variety.mean() if variety.any() else 0
            wanted = scores + 0.5 * variety * scale
            torch.testing.assert_close(found[sample, index].double(), wanted, atol=1e-6, rtol=1e-5)


def test_context_of_equal_features_is_the_score(candidates):
    answers = {Attention(): torch.rand(1, 9, generator=torch.Generator().manual_seed(4))}
    answers[Features()] = torch.rand(9, generator=torch.Generator().manual_seed(5)).expand(1, 9, 9)
    tokens = candidates([[(1, 3, 3)]], answers=answers)
    assert torch.equal(LocalVariance(ROPE, partition_size=2).score(tokens), answers[Attention()])
    assert list(LocalVariance(ROPE).signals()) == [Attention(), Features()]
