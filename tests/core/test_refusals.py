import math

import pytest
import torch

from feathervlm.core import Grid, KNNDensity, PruningError, Schedule, Top, VisualLayout
from feathervlm.core.candidates import Candidates
from feathervlm.core.schedule import check_layer
from feathervlm.core.spec import from_json
from feathervlm.methods import FastV, Feather, Uniform, get

ONES = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grid(2.5),
        lambda: Grid(None),
        lambda: get("uniform:stride=2.5"),
        lambda: get("feather:stride=2.5"),
        lambda: check_layer(math.inf),
        lambda: check_layer(math.nan),
        lambda: get("fastv:layer=1e999"),
        lambda: get("random:seed=abc"),
        lambda: get("random:seed=1.5"),
        lambda: get("feather:fixed=no"),
        lambda: get("fastv:keep={[1]:2}"),
        lambda: KNNDensity(True),
        lambda: Grid(3) | 3,
        lambda: Grid(3) & "x",
        lambda: VisualLayout(ONES, [(1, 2, 2)]),
        lambda: VisualLayout(ONES, [[(1, 2, 2)]], [3]),
        lambda: from_json('{"feathervlm": 1, "stages": 5}'),
        lambda: from_json('{"feathervlm": 1, "stages": [{"type": ["Grid"]}]}'),
        lambda: from_json('{"feathervlm": true, "stages": []}'),
    ],
)
def test_refused_with_a_pruning_error(make):
    with pytest.raises(PruningError):
        make()


def test_lists_are_normalised():
    for method in (Feather(layers=[8, 16]), Uniform(stride=[1, 2, 2])):
        assert get(str(method)) == method
        hash(method)


def test_inference_mode_does_not_leak_into_training():
    grids = [[(1, 2, 2)]]
    with torch.inference_mode():
        VisualLayout(ONES, grids).geometry()
    x = torch.randn(1, 4, requires_grad=True)
    torch.where(VisualLayout(ONES, grids).geometry().exists, x, 0.0).sum().backward()


def test_knn_without_any_visual_token():
    place = VisualLayout(torch.zeros(1, 3, dtype=torch.bool), [[]]).geometry()

    class Signals:
        def read(self, signal):
            return torch.zeros(1, 0, 8)

    assert Top(KNNDensity(), 0.5).select(Candidates(place, place.exists, Signals())).shape == (1, 0)


def test_solve_with_several_images():
    for average in (384.7, 1000, 1001, 1002):
        FastV(layer=3).solve(average, [(1, 24, 24)] * (2 if average < 1000 else 5), 32)


def test_planning_reads_two_sides_as_one_frame_like_layouts():
    assert Schedule().tokens_per_layer([(24, 24)], 2) == [576, 576]
