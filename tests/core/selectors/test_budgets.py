"""Laws of every selector with a budget, and of images as rows."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import Given, LastTokenAttention, PruningError, Top
from feathervlm.core.budget import kept
from feathervlm.core.criteria.variance import LocalVariance
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.selectors.dilation import Dilate
from feathervlm.core.selectors.diversity import DPP, MaxMin
from feathervlm.core.selectors.redundancy import Dedup, FarFromPivots, GreedyThreshold
from feathervlm.core.selectors.thresholds import IQR, Threshold
from feathervlm.core.selectors.zones import Zone
from feathervlm.core.signals import Features

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROPE = LastTokenAttention()
READS = ["tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero", "cpu"]
EVERY = {
    "max-min": lambda keep: MaxMin(keep),
    "dpp": lambda keep: DPP(keep),
    "dpp-relevance": lambda keep: DPP(keep, ROPE),
    "greedy": lambda keep: GreedyThreshold(ROPE, keep, 0.5),
    "dedup": lambda keep: Dedup(ROPE, keep),
    "far": lambda keep: FarFromPivots(Top(ROPE, 3), keep),
    "zone-window": lambda keep: Zone(ROPE, keep, "window", 2),
    "zone-grid": lambda keep: Zone(ROPE, keep, "grid", 3, "softmax"),
    "zone-chunk": lambda keep: Zone(ROPE, keep, "chunk", 5, "proportional", LocalVariance(ROPE, partition_size=5)),
}


def per_image(tokens, mask):
    for sample, grids in enumerate(tokens.signals.grids):
        for image in range(len(grids)):
            members = (tokens.geometry.image[sample] == image) & tokens.geometry.exists[sample]
            yield [mask[sample] & members, *(part[sample] & members for part in (tokens.present,))]


@relaxed
@given(st.data())
def test_counts_are_exact(batches, budgeted, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(budgeted)
    selected = selector.select(tokens)
    wanted = kept_per_image(tokens, selector)
    assert [int(chosen.sum()) for chosen, _ in per_image(tokens, selected)] == wanted


def kept_per_image(tokens, selector):
    counts = []
    for sample, grids in enumerate(tokens.signals.grids):
        for image in range(len(grids)):
            members = (tokens.geometry.image[sample] == image) & tokens.geometry.exists[sample]
            current = int((members & tokens.present[sample]).sum())
            base = int(members.sum()) if selector.of == "original" else current
            counts.append(min(kept(selector.keep, base), current))
    return counts


@relaxed
@given(st.data())
def test_given_tokens_come_before_all_others(batches, budgeted, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(budgeted)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    first = tokens.present & (torch.rand(tokens.present.shape, generator=generator) < data.draw(st.floats(0, 1)))
    filled = (Given(first) >> selector).select(tokens)
    wanted = kept_per_image(tokens, selector)
    pairs = zip(per_image(tokens, filled), per_image(tokens, first), wanted, strict=True)
    for (chosen, _), (given_first, _), count in pairs:
        assert int(chosen.sum()) == count
        if int(given_first.sum()) <= count:
            assert not (given_first & ~chosen).any()
        else:
            assert not (chosen & ~given_first).any()


@relaxed
@given(st.data())
def test_nothing_given_is_the_selection(batches, budgeted, data):
    tokens, selector = data.draw(batches(min_images=1)), data.draw(budgeted)
    nothing = torch.zeros_like(tokens.present)
    assert torch.equal(selector.fill(tokens, nothing), selector.select(tokens))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("keep", [1, 1.0, 100])
def test_a_whole_budget_keeps_everything(candidates, random_tokens, name, keep):
    tokens = random_tokens([[(1, 4, 5), (1, 1, 1)], [(2, 3, 3)]])
    assert torch.equal(EVERY[name](keep).select(tokens), tokens.present)


@pytest.mark.parametrize("name", EVERY)
def test_one_token_stays(random_tokens, name):
    tokens = random_tokens([[(1, 1, 1)]])
    assert EVERY[name](0.3).select(tokens).tolist() == [[True]]


@pytest.mark.parametrize("name", EVERY)
def test_no_tokens_are_no_trouble(candidates, name):
    answers = {ROPE.signal: torch.zeros(2, 0), Features(): torch.zeros(2, 0, 4)}
    tokens = candidates([[], []], answers=answers)
    assert EVERY[name](0.3).select(tokens).shape == (2, 0)
    for selector in (IQR(ROPE), Threshold(ROPE, 0.0), Dilate(Top(ROPE, 0.5))):
        assert selector.select(tokens).shape == (2, 0)


@pytest.mark.parametrize("name", ["max-min", "dpp", "dpp-relevance", "greedy", "far"])
def test_equal_features_and_scores_keep_the_lowest_indices(candidates, name):
    grids = [[(1, 3, 7), (1, 2, 2)], [(1, 5, 5)]]
    width = 25
    same = torch.rand(9, generator=torch.Generator().manual_seed(0)).expand(2, width, 9)
    tokens = candidates(grids, answers={ROPE.signal: torch.ones(2, width), Features(): same})
    selected = EVERY[name](0.4).select(tokens)
    assert [row.nonzero().flatten().tolist() for row in selected] == [[*range(8), 21], [*range(10)]]


@pytest.mark.parametrize("name", EVERY)
def test_nothing_waits_for_the_device(random_tokens, name, monkeypatch):
    tokens = random_tokens([[(1, 4, 5), (1, 3, 2)], [(2, 3, 3)]])
    calls = []
    for read in READS:
        original = getattr(torch.Tensor, read)
        monkeypatch.setattr(torch.Tensor, read, lambda *a, n=read, o=original, **k: (calls.append(n), o(*a, **k))[1])
    EVERY[name](0.3).select(tokens)
    (Top(ROPE, 0.1) >> EVERY[name](0.3)).select(tokens)
    monkeypatch.undo()
    assert calls == []


@relaxed
@given(st.data())
def test_rows_are_the_images(batches, data):
    tokens = data.draw(batches())
    images, numbers = ImageRows(tokens), torch.arange(tokens.present.numel()).view(tokens.present.shape)
    rows = images.take(numbers)
    assert torch.equal(images.put(images.present), tokens.present)
    assert torch.equal(images.put(images.exists), tokens.geometry.exists)
    assert torch.equal(images.mark(tokens.present), images.present)
    found = [row[there].tolist() for row, there in zip(rows, images.exists, strict=True)]
    wanted = []
    for sample in range(len(tokens.present)):
        for image in range(tokens.geometry.images):
            members = tokens.geometry.exists[sample] & (tokens.geometry.image[sample] == image)
            wanted.append(numbers[sample][members].tolist())
    assert found == wanted


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MaxMin(0), "keep=0"),
        (lambda: MaxMin(0.5, "pixels"), "features='pixels'"),
        (lambda: MaxMin(0.5, of="all"), "of='all'"),
        (lambda: DPP(0.5, "attention"), "relevance='attention'"),
        (lambda: GreedyThreshold(ROPE, 0.5, tau=1.5), "tau=1.5"),
        (lambda: GreedyThreshold(ROPE, 0.5, tau=True), "tau=True"),
        (lambda: GreedyThreshold(Top, 0.5), "criterion="),
        (lambda: Dedup(ROPE, 0.5, per_round=0), "per_round=0"),
        (lambda: Dedup(None, 0.5), "criterion=None"),
        (lambda: FarFromPivots(Dilate(Top(ROPE, 0.5)), 0.5), "pivots=Dilate"),
        (lambda: Zone(ROPE, 0.5, "circle"), "partition='circle'"),
        (lambda: Zone(ROPE, 0.5, partition_size=0), "partition_size=0"),
        (lambda: Zone(ROPE, 0.5, share="fair"), "share='fair'"),
        (lambda: Zone(ROPE, 0.5, weight=3), "weight=3"),
        (lambda: Zone(ROPE, 0.5, rounding="none"), "rounding='none'"),
        (lambda: Zone(0.5, 0.5), "criterion=0.5"),
        (lambda: LocalVariance(ROPE, alpha=-1), "alpha=-1"),
        (lambda: LocalVariance(ROPE, partition="frame"), "partition='frame'"),
        (lambda: LocalVariance(ROPE, features="pixels"), "features='pixels'"),
        (lambda: Dilate(ROPE), "LastTokenAttention"),
        (lambda: Dilate(Top(ROPE, 0.5), ((0, 1.5),)), "offsets=((0, 1.5),)"),
        (lambda: Dilate(Top(ROPE, 0.5), 1), "offsets=1"),
        (lambda: IQR(ROPE, factor=float("nan")), "factor=nan"),
        (lambda: IQR(ROPE, expected_share=0), "expected_share=0"),
        (lambda: Threshold(ROPE, "high"), "above='high'"),
        (lambda: Threshold("attention", 0.1), "criterion='attention'"),
        (lambda: Top(ROPE, 0.5) >> IQR(ROPE), "IQR("),
    ],
)
def test_bad_parameters_are_named(make, named):
    with pytest.raises(PruningError) as error:
        make()
    assert named in str(error.value)
