"""Presets have the dimensions of their models, and their prompts the visual tokens that were asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.bench import presets
from feathervlm.bench.inputs import BenchPrompt, picture_count
from feathervlm.core.errors import PruningError
from feathervlm.engine.call import ModelCall
from feathervlm.families import find
from feathervlm.inference import loading

MILLIONS = {  # of the published checkpoints; the 170M are the decoder's layers
    "llava-1.5-7b": 7063, "llava-next-7b": 7063, "qwen2.5-vl-7b": 8292,
}  # fmt: skip


@pytest.mark.parametrize("name", MILLIONS)
def test_presets_are_as_large_as_what_they_stand_for(name):
    preset = presets.get(name)
    model = loading.empty_model(preset.config(preset.tokens), "sdpa")
    assert sum(part.numel() for part in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], rel=0.001)


def test_the_170m_are_those_of_the_decoder():
    preset = presets.get("llava-170m")
    model = loading.empty_model(preset.config(576), "sdpa")
    assert sum(part.numel() for part in model.get_decoder().layers.parameters()) == pytest.approx(170e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tokens", "grids"),
    [
        ("mini", 64, [(1, 8, 8)]),
        ("mini", 49, [(1, 7, 7)]),
        ("mini", 192, [(1, 8, 8)] * 3),
        ("mini-next", 1152, [((1, 24, 24), (1, 24, 24))]),
        ("mini-next", 2880, [((1, 24, 24), (1, 48, 48))]),
        ("mini-qwen", 36, [(1, 6, 6)]),
        ("mini-qwen", 60, [(1, 6, 10)]),
    ],
)
def test_the_family_finds_what_was_asked_for(name, tokens, grids):
    preset = presets.get(name)
    model = loading.empty_model(preset.config(tokens), "sdpa")
    prompt = preset.prompt(tokens, 20)
    layout = find(model, None).layout(ModelCall(dict(prompt.inputs)))
    assert layout.counts == (tokens,) == (prompt.visual,)
    assert layout.shapes(0) == grids


@pytest.mark.parametrize(
    ("name", "tokens", "remedy"),
    [
        ("mini", 65, "choose 64, 81 or 128"),
        ("mini-next", 576, "1152, 2880, 5760, 9792"),
        ("mini-qwen", 37, "choose 36 or 49"),
        ("mini-qwen", 40 * 97, "choose"),
    ],
)
def test_impossible_numbers_are_refused_with_possible_ones(name, tokens, remedy):
    preset = presets.get(name)
    with pytest.raises(PruningError, match=f"{tokens} visual tokens.*{remedy}"):
        preset.config(tokens)
    with pytest.raises(PruningError):
        preset.prompt(tokens, 20)


def test_unknown_names_are_refused():
    with pytest.raises(PruningError, match="no config 'nope'; choose one of tiny"):
        presets.get("nope")


@given(size=st.integers(1, 9), text=st.integers(8, 60))
def test_ragged_batches_are_padded_on_the_left(size, text):
    ids = torch.tensor([[1, *[99] * 16, *range(2, 1 + text)]])
    prompt = BenchPrompt({"input_ids": ids, "pixel_values": torch.arange(16.0).view(2, 8)}, 16, 2)
    made = prompt.batch(size, True, torch.device("cpu"), torch.float64)
    mask = made.get("attention_mask", torch.ones(size, ids.shape[1]).long())
    for sample in range(size):
        by = sample % 4 * ((text - 1) // 5)
        assert mask[sample].tolist() == [0] * by + [1] * (ids.shape[1] - by)
        assert made["input_ids"][sample, by:].tolist() == ids[0, : ids.shape[1] - by].tolist()
        turned = np.roll(prompt.inputs["pixel_values"].numpy(), 3 * sample, -1)
        assert made["pixel_values"][2 * sample : 2 * sample + 2].tolist() == turned.tolist()
    assert made["pixel_values"].dtype == torch.float64


def test_even_batches_have_no_mask():
    prompt = BenchPrompt({"input_ids": torch.arange(9)[None]}, 1)
    assert list(prompt.batch(3, False, torch.device("cpu"), torch.float32)) == ["input_ids"]


def test_several_pictures():
    assert picture_count(128, 64) == 2
    for total in (100, 32):
        with pytest.raises(
            PruningError, match=f"picture of this model has 64 visual tokens.*no number of pictures has {total}"
        ):
            picture_count(total, 64)
