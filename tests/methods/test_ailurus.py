"""AiluRus against clustering in plain Python and a tower that is run by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import feathervlm
import tiny_models as tiny
from feathervlm import Unprunable, methods
from feathervlm.core import PruningError
from feathervlm.core.encoder.density_peaks import DensityPeakMerging
from methods.towers import clusters, members, run


@given(st.data())
@settings(deadline=None)
def test_clusters_are_those_of_plain_python(data):
    side, protected = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 1))
    tower = DensityPeakMerging(
        neighbors=data.draw(st.integers(1, 7)),
        reach=data.draw(st.integers(1, 40)),
        locality=data.draw(st.sampled_from([0.1, 0.5, 1.0])),
    )
    count = data.draw(st.integers(1, side * side))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    features = torch.randn(2, protected + side * side, 6, generator=generator)
    place = tower.assign(features, count, protected)
    for image in range(2):
        expected = clusters(features[image, protected:], count, tower.neighbors, tower.reach, tower.locality)
        front = [[0]][:protected]
        assert members(place[image]) == front + [sorted(patch + protected for patch in group) for group in expected]


@given(st.data())
@settings(deadline=None)
def test_clusters_inside_windows_are_those_of_plain_python(data):
    rows, cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    high, wide = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    patches = [(row // high, col // wide, row, col) for row in range(rows) for col in range(cols)]
    patches.sort()
    where, numbers = [patch[2:] for patch in patches], sorted({patch[:2] for patch in patches})
    window = [numbers.index(patch[:2]) + 5 for patch in patches]
    tower = DensityPeakMerging(neighbors=data.draw(st.integers(1, 7)), reach=data.draw(st.integers(1, 40)))
    count = data.draw(st.integers(1, rows * cols))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    features = torch.randn(1, rows * cols, 6, generator=generator)
    place = tower.assign(features, count, 0, torch.tensor(where), torch.tensor(window))
    expected = clusters(features[0], count, tower.neighbors, tower.reach, tower.locality, where, window)
    assert members(place[0]) == [sorted(group) for group in expected]
    assert len(expected) == max(count, len(numbers))


@pytest.mark.parametrize(
    "method", [methods.AiluRus(encoder_layer=2, keep=0.3), methods.AiluRus(encoder_layer=0, reach=6)], ids=str
)
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@torch.no_grad()
def test_the_tower_is_the_one_run_by_hand(tower, method):
    llava = tiny.llava(tower=tower, depth=5).double()
    pixels = torch.stack([tiny.pixel([1, 2, 3], image) for image in range(3)]).double()
    protected, count = int(tower == "clip"), int(tiny.SIDE**2 * method.keep)

    def before(layer, states):
        if layer != method.encoder_layer:
            return None
        found = clusters(states[protected:], count, method.neighbors, method.reach, method.locality)
        return [[0]][:protected] + [[patch + protected for patch in group] for group in found]

    with feathervlm.prune(llava, method):
        output = llava.model.get_image_features(pixels, output_hidden_states=True)
    for image in range(3):
        states, seen = run(llava.model.vision_tower, pixels[image : image + 1], before=before)
        for found, wanted in zip(output.hidden_states, states, strict=True):
            torch.testing.assert_close(found[image], wanted, atol=1e-5, rtol=0)
        features = llava.model.multi_modal_projector(states[-2][protected:])
        torch.testing.assert_close(output.pooler_output[image], features, atol=1e-5, rtol=0)
        assert len(features.unique(dim=0)) == count
        assert seen[method.encoder_layer :] == [(count + protected, count + protected)] * (5 - method.encoder_layer)


@torch.no_grad()
def test_the_language_model_gets_every_token_and_the_encoder_fewer():
    llava, inputs = tiny.llava(depth=5), tiny.batch(tiny.prompt(2, seed=1))
    with feathervlm.prune(llava, methods.AiluRus(encoder_layer=2, keep=0.25)) as pruning:
        llava(**inputs)
    report = pruning.report
    assert report.encoder_tokens == [[37, 37, 10, 10, 10]]
    assert report.tokens_per_layer == [[72] * tiny.LAYERS]
    assert report.flops_ratio == 1
    assert report.notes == []
    assert "vision encoder    20.8 of 37 tokens per layer" in str(report)
    assert report.to_dict()["encoder_tokens"] == [[37, 37, 10, 10, 10]]


def test_a_picture_that_is_not_square_is_refused():
    with pytest.raises(Unprunable, match="24 patches do not make a square"):
        DensityPeakMerging().plan(24, 24)
    assert DensityPeakMerging().plan(24, 24, placed=True) == {2: 12}


def test_the_published_layer_is_the_third_of_a_large_encoder():
    assert methods.AiluRus().schedule().encoder.plan(24, 576) == {2: 288}
    assert methods.AiluRus(keep=1.0).schedule().encoder.plan(24, 576) == {}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ailurus:keep=0", "keep=0"),
        ("ailurus:encoder_layer=2.0", "layer=2.0"),
        ("ailurus:neighbors=0", "neighbors=0"),
        ("ailurus:reach=0", "reach=0"),
        ("ailurus:locality=0", "locality=0"),
    ],
)
def test_bad_parameters_are_refused(spec, says):
    with pytest.raises(PruningError, match=says):
        methods.get(spec)
