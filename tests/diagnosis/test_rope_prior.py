"""What RoPE alone would look at: against rotations written out by hand and against real models' tables."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import feathervlm
from feathervlm import VisualLayout
from feathervlm.core.layout import Plane
from feathervlm.diagnosis.rope_prior import (
    NoPrior,
    kernel,
    on_grid,
    prior_layer,
    prior_map,
    prior_overlap,
    prior_rank_correlation,
    recorded_tables,
)
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.report.records import Record
from tiny_models import IMAGE, SIDE, batch, llava, prompt


def tables(positions, dim=16, theta=1e4):
    """cos and sin as Llama has them, from positions (sequence,)."""
    angles = np.outer(positions, theta ** -(np.arange(0, dim, 2) / dim))
    angles = np.concatenate([angles, angles], 1)
    return np.cos(angles), np.sin(angles)


def rotated(position, dim, theta):
    """A vector of ones, every pair turned by hand."""
    turned = []
    for pair in range(dim // 2):
        angle = position * theta ** -(2 * pair / dim)
        turned += [math.cos(angle) - math.sin(angle), math.sin(angle) + math.cos(angle)]
    return np.array(turned)


@pytest.mark.parametrize(("dim", "theta"), [(8, 1e4), (64, 1e4), (32, 1e6)])
def test_the_kernel_is_a_product_of_rotated_ones(dim, theta):
    query, keys = 90, np.array([0, 3, 17, 55, 89, 90])
    by_hand = [rotated(query, dim, theta) @ rotated(key, dim, theta) / dim for key in keys]
    assert kernel(*tables(np.arange(100), dim, theta), query, keys) == pytest.approx(by_hand)


def test_it_is_one_at_no_distance_and_its_envelope_decays():
    values = kernel(*tables(np.arange(3000), 128), 2999, np.arange(3000))[::-1]  # by distance
    assert values[0] == pytest.approx(1)
    highest = [values[start : start + 300].max() for start in range(0, 3000, 300)]
    assert all(near > far for near, far in zip(highest, highest[3:], strict=False))
    assert values[:100].mean() > values[500:1000].mean() > values[2000:].mean()


def test_scaled_partial_and_interleaved_tables():
    cos, sin = tables(np.arange(40))
    plain = kernel(cos, sin, 39, np.arange(40))
    assert kernel(1.3 * cos, 1.3 * sin, 39, np.arange(40)) == pytest.approx(plain)  # YaRN
    half = kernel(cos[:, :8], sin[:, :8], 39, np.arange(40))  # every pair once
    twice = kernel(cos[:, :8].repeat(2, 1), sin[:, :8].repeat(2, 1), 39, np.arange(40))
    assert half == pytest.approx(plain)
    assert twice == pytest.approx(plain)
    tensors = torch.from_numpy(cos)[None], torch.from_numpy(sin)[None]
    assert kernel(*tensors, 39, np.arange(40)) == pytest.approx(plain)


def test_permuted_positions_permute_it():
    order = np.random.default_rng(0).permutation(39)
    cos, sin = tables(np.arange(40))
    moved = kernel(*tables(np.append(order, 39)), 39, np.arange(39))
    assert moved == pytest.approx(kernel(cos, sin, 39, order))


@pytest.fixture(scope="module")
def pruned():
    model = llava()
    ids = prompt(1)
    with feathervlm.prune(model, "fastv:layer=2,keep=0.5") as pruning, recorded_tables(model, [1, 4]) as recorded:
        model(**batch(ids))
    return model, ids, pruning.report, recorded


def test_a_real_llamas_tables_are_recorded_whole(pruned):
    model, ids, report, recorded = pruned
    assert set(recorded) == {1, 4}
    for tables_ in recorded.values():  # layer 4 sees half of the tokens, but is called with all
        assert tables_[0].shape[-2] == len(ids)
    places = np.array([place for place, token in enumerate(ids) if token == IMAGE])
    theta = DecoderView(model).config.rope_parameters["rope_theta"]
    by_hand = [rotated(len(ids) - 1, 16, theta) @ rotated(place, 16, theta) / 16 for place in places]
    found = prior_map(report.record, recorded[1])
    assert found.shape == (1, SIDE, SIDE)
    assert found.ravel() == pytest.approx(by_hand, abs=1e-5)
    assert not any(layer._forward_pre_hooks for layer in DecoderView(model).layers)


def test_padding_on_either_side_is_no_query():
    model, (short, long) = llava(), (prompt(1), prompt(1, 1, before=20, after=30))
    maps = []
    for inputs in (batch(short), *(batch(short, long, side=side) for side in ("left", "right"))):
        with feathervlm.prune(model, "uniform:layer=2") as pruning, recorded_tables(model, [0]) as recorded:
            model(**inputs)
        maps.append(prior_map(pruning.report.record, recorded[0]))
    assert maps[1] == pytest.approx(maps[0], abs=1e-4)
    assert maps[2] == pytest.approx(maps[0], abs=1e-4)


def test_the_finest_plane_of_tiles_is_put_in_order():
    planes = (Plane((1, 1, 2)), Plane((1, 4, 2), tiles=(2, 1)), Plane((1, 1, 1)))
    layout = VisualLayout(torch.ones(1, 11, dtype=torch.bool), [[planes]])
    assert on_grid(layout, np.arange(11)).tolist() == [[[2, 3], [4, 5], [6, 7], [8, 9]]]
    wide = VisualLayout(torch.ones(1, 8, dtype=torch.bool), [[(Plane((1, 2, 4), tiles=(1, 2)),)]])
    assert on_grid(wide, np.arange(8)).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    with pytest.raises(feathervlm.PruningError, match="no image 1"):
        on_grid(wide, np.arange(8), image=1)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (None, "no rotary tables"),
        (torch.ones(1, 6, 4, dtype=torch.complex64), "complex"),
        (torch.ones(1, 6, 4), "one tensor"),
        ((torch.ones(3, 1, 6, 4), torch.ones(3, 1, 6, 4)), "an unsupported form"),
    ],
)
def test_no_prior_is_made_up(tables, message):
    layout = VisualLayout(torch.tensor([[True] * 4 + [False] * 2]), [[(2, 2)]])
    with pytest.raises(NoPrior, match=message):
        prior_map(Record(layout, None, torch.tensor([[5]]), 6, []), tables)


def test_layers_that_do_not_rotate_have_none(monkeypatch):
    decoder = DecoderView(llava())
    assert prior_layer(decoder, 3) == 2
    assert prior_layer(decoder, 3, own=True) == 3
    assert prior_layer(decoder, 0) == 0
    monkeypatch.setattr("feathervlm.engine.rotary.RotaryRules.rotates", lambda *_: False)
    with pytest.raises(NoPrior, match="Layer 2 does not rotate"):
        prior_layer(decoder, 3)


def test_rank_correlation():
    rng = np.random.default_rng(0)
    values = rng.random((5, 6))
    assert prior_rank_correlation(values, np.exp(values)) == pytest.approx(1)
    assert prior_rank_correlation(values, -values) == pytest.approx(-1)
    assert math.isnan(prior_rank_correlation(values, np.ones((5, 6))))
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3.
    assert prior_rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    with pytest.raises(feathervlm.PruningError, match="do not show the same cells"):
        prior_rank_correlation(values, values.T)


def test_overlap_with_the_prior():
    prior = np.arange(12.0).reshape(1, 3, 4)
    bottom, top = prior >= 8, prior < 4
    assert prior_overlap(prior, [bottom]) == 1
    assert prior_overlap(prior, [top]) == 0
    assert prior_overlap(prior, [bottom, top]) == 0.5
    assert prior_overlap(np.ones((1, 3, 4)), [bottom]) == pytest.approx(4 / 12)  # ties count in part
    assert math.isnan(prior_overlap(prior, [prior < 0]))


def test_a_layer_that_does_not_run_is_not_recorded():
    model = llava()
    with pytest.raises(RuntimeError), recorded_tables(model, [0]):
        raise RuntimeError
    assert not any(layer._forward_pre_hooks for layer in DecoderView(model).layers)


def test_the_query_that_asked_counts():
    layout = VisualLayout(torch.tensor([[True] * 4 + [False] * 4]), [[(2, 2)]])
    cos, sin = (torch.from_numpy(table)[None] for table in tables(np.arange(8)))
    record = SimpleNamespace(layout=layout, query=torch.tensor([[5]]))
    assert prior_map(record, (cos, sin)).ravel() == pytest.approx(kernel(cos, sin, 5, np.arange(4)))
