"""Merging in a vision encoder that packs pictures, against one that runs by hand, picture by picture."""

import pytest
import torch
import transformers as tf
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from family_cases.base import build
from family_cases.qwen import GRIDS, IDS, MROPE, TOWER, qwen_picture
from feathervlm import Unprunable, methods
from feathervlm.core.encoder.bipartite import BipartiteMerging
from feathervlm.core.encoder.density_peaks import DensityPeakMerging
from feathervlm.core.encoder.grouping import first_of_each
from feathervlm.engine.vision.merging import EncoderMerge
from laws import traces
from method_cases import crossed
from methods.towers import BLOCK, clusters, matches, run_packed

DEPTH = 5
FULL = [2, 4]
BOTH = [methods.ToMe(keep=0.4), methods.AiluRus(encoder_layer=1, keep=0.4)]


def model_of(name="qwen2_5_vl", window=4, full=FULL, attention="sdpa"):
    """Return a model whose encoder has windows of so many rows and columns of patches, or none (Qwen2-VL)."""
    text = tiny.sizes(rope_parameters=MROPE)
    if name == "qwen2_vl":
        tower = {key: value for key, value in TOWER.items() if key not in ("out_hidden_size", "intermediate_size")}
        vision = {**tower, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "depth": DEPTH}
        config = tf.Qwen2VLConfig(text_config=text, vision_config=vision, **IDS)
        return build(tf.Qwen2VLForConditionalGeneration, config, attention)
    vision = {**TOWER, "depth": DEPTH, "window_size": 4 * window, "fullatt_block_indexes": full}
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS)
    return build(tf.Qwen2_5_VLForConditionalGeneration, config, attention)


def pictures(*numbers):
    """Return the packed pixels and the grids of pictures."""
    tensors = [qwen_picture(number).tensors for number in numbers]
    return [torch.cat([one[name] for one in tensors]) for name in ("pixel_values", "image_grid_thw")]


def encode(model, tower, *numbers, **kwargs):
    """Return the output of an encoder that merges, and the state of its run."""
    merge = EncoderMerge(model.model, tower, pytest.fail)
    pixels, grids = pictures(*numbers)
    with merge.active():
        output = model.model.visual(pixels.to(model.dtype), grids, **kwargs)
    return output, merge.runs[0]


def tome(method, shape):
    left = method.schedule().encoder.plan(DEPTH, shape[0] * shape[1])

    def between(layer, keys, window):
        return matches(keys.detach().float(), len(keys) - left[layer], 0, window) if layer in left else None

    return {"between": between, "proportional": method.proportional}


def ailurus(method, shape):
    count = int(shape[0] * shape[1] * method.keep)

    def before(layer, states, where, window):
        if layer != method.encoder_layer:
            return None
        return clusters(states, count, method.neighbors, method.reach, method.locality, where, window)

    return {"before": before}


CASES = {
    "tome": (methods.ToMe(keep=0.4), tome),
    "tome-equal": (methods.ToMe(keep=0.4, proportional=False), tome),
    "tome-late": (methods.ToMe(keep=0.7, start=1, stop=2), tome),
    "ailurus": (methods.AiluRus(encoder_layer=1, keep=0.4), ailurus),
    "tome-few": (methods.ToMe(keep=0.2), tome),
    "ailurus-few": (methods.AiluRus(encoder_layer=2, keep=0.2), ailurus),
    "ailurus-late": (methods.AiluRus(encoder_layer=4, keep=0.2, reach=9), ailurus),
}


def compare(model, case, window, full):
    """Compare a packed encoder's states of three pictures with each by hand; return the tokens that saw each layer."""
    method, how = CASES[case]
    output, run = encode(model, method.schedule().encoder, 0, 1, 2)
    found = output.pooler_output.split([rows * cols // 4 for rows, cols in GRIDS])
    for number, shape in enumerate(GRIDS):
        pixels, _ = pictures(number)
        wanted, seen, _ = run_packed(model.model.visual, pixels, shape, window, full, **how(method, shape))
        torch.testing.assert_close(found[number], wanted, atol=1e-5, rtol=1e-5)
        plain, *_ = run_packed(model.model.visual, pixels, shape, window, full)
        assert (plain - wanted).abs().max() > 1e-2
        assert run.records()[number] == (shape[0] * shape[1], seen)
    return [record.entered for record in run.records()]


@pytest.mark.parametrize(("case", "attention"), crossed(CASES, ["sdpa", "eager"]))
@torch.no_grad()
def test_the_tower_of_qwen2_5_vl_is_the_one_run_run_packed(case, attention):
    seen = compare(model_of(attention=attention).double(), case, 4, FULL)
    plan = CASES[case][0].schedule().encoder.plan(DEPTH, 144, placed=True)
    assert seen[0][-1] == min(plan.values())  # windows of 16 are in nobody's way


@pytest.mark.parametrize(("attention", "case"), crossed(["eager", "sdpa"], CASES))
@torch.no_grad()
def test_the_tower_of_qwen2_vl_is_the_one_run_run_packed(case, attention):
    compare(model_of("qwen2_vl", attention=attention).double(), case, None, range(DEPTH))


@pytest.mark.parametrize("case", ["tome-few", "ailurus-few"])
@torch.no_grad()
def test_where_windows_are_small_as_many_patches_merge_as_can(case):
    seen = compare(
        model_of(window=2, full=[1]).double(), case, 2, [1]
    )  # 36 windows of 4 patches, and the last layer's, too
    assert 36 <= seen[0][-1] <= 40
    assert min(CASES[case][0].schedule().encoder.plan(DEPTH, 144, placed=True).values()) == 28


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("method", BOTH, ids=str)
@torch.no_grad()
def test_two_pictures_in_one_sequence_are_as_each_alone(name, method):
    model, tower = model_of(name), method.schedule().encoder
    together, run = encode(model, tower, 1, 2)
    parts = together.pooler_output.split([rows * cols // 4 for rows, cols in GRIDS[1:]])
    for number, part in enumerate(parts):
        alone, single = encode(model, tower, number + 1)
        torch.testing.assert_close(part, alone.pooler_output, atol=1e-5, rtol=1e-4)
        assert single.records() == run.records()[number : number + 1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
@torch.no_grad()
def test_keeping_everything_changes_no_bit(name, attention):
    model, pixels = model_of(name, attention=attention), pictures(0, 1, 2)
    plain = model.model.visual(*pixels, output_hidden_states=True)
    for tower in (BipartiteMerging(keep=1.0), DensityPeakMerging(layer=0, keep=1.0)):
        found, run = encode(model, tower, 0, 1, 2, output_hidden_states=True)
        assert torch.equal(found.pooler_output, plain.pooler_output)
        assert all(map(torch.equal, found.hidden_states, plain.hidden_states))
        assert not run.merged


@pytest.mark.parametrize("method", BOTH, ids=str)
@torch.no_grad()
def test_states_that_are_handed_on_have_every_patch_where_it_was(method):
    output, run = encode(model_of(), method.schedule().encoder, 0, 2, output_hidden_states=True)
    assert {len(states) for states in output.hidden_states} == {144 + 96}
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    for states, source in zip(output.hidden_states, run.sources, strict=True):
        first = first_of_each(source, int(source.max()) + 1)[0]
        assert torch.equal(states, states[first][source[0]])
    assert len(output.last_hidden_state.unique(dim=0)) == sum(record.entered[-1] for record in run.records())


@torch.no_grad()
def test_a_token_stays_if_one_of_its_patches_is_the_first_of_a_group():
    model, case = model_of(), FAMILY_CASES["qwen2_5_vl"]
    inputs = case.inputs(case.prompt(0, 2))
    with feathervlm.prune(model, methods.ToMe(keep=0.2)) as pruning:
        model(**inputs)
    expected, before = [], 0
    for number in (0, 2):
        shape, (pixels, _) = GRIDS[number], pictures(number)
        *_, members = run_packed(model.model.visual, pixels, shape, 4, FULL, **tome(methods.ToMe(keep=0.2), shape))
        tokens = {row // BLOCK * (shape[1] // BLOCK) + col // BLOCK for (row, col), *_ in members}
        expected += sorted(before + token for token in tokens)
        before += shape[0] * shape[1] // 4
    kept = pruning.report.stages[0].kept[0].tolist()
    assert kept == expected
    assert len(kept) < before
    assert [entered[-1] for entered in pruning.report.encoder_tokens] == [28, 19]
    assert "vision encoder" in str(pruning.report)


@pytest.mark.parametrize("place", ["attn", "norm2", "mlp", None])
@pytest.mark.parametrize("method", BOTH, ids=str)
@torch.no_grad()
def test_nothing_is_left_on_the_model(method, place):
    model, case = model_of(), FAMILY_CASES["qwen2_5_vl"]
    inputs = case.inputs(*case.prompts())
    before, known, plain = traces(model), set(ALL_ATTENTION_FUNCTIONS), model(**inputs).logits
    with feathervlm.prune(model, method):
        if place:
            broken = getattr(model.model.visual.blocks[2], place).register_forward_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(**inputs)
            broken.remove()
        merged = model(**inputs).logits
        assert not torch.equal(merged, plain)
    assert traces(model) == before
    assert set(ALL_ATTENTION_FUNCTIONS) == known
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("method", BOTH, ids=str)
@torch.no_grad()
def test_segments_that_are_not_foreseen_are_refused_before_a_merge_and_raise_behind_it(method):
    model, refused = model_of(), []
    merge, (pixels, grids) = EncoderMerge(model.model, method.schedule().encoder, refused.append), pictures(0, 2)
    bounds = torch.tensor([0, 100, 240], dtype=torch.int32)  # instead of those of the pictures
    model.model.visual.fullatt_block_indexes = [0]
    with merge.active():
        found = model.model.visual(pixels, grids, cu_seqlens=bounds).pooler_output
    assert "Layer 0 of the vision encoder attends to parts" in str(refused[0])
    assert not merge.runs
    assert torch.equal(found, model.model.visual(pixels, grids, cu_seqlens=bounds).pooler_output)
    model.model.visual.fullatt_block_indexes = [3]
    with pytest.raises(Unprunable, match="Layer 3 of the vision encoder attends to parts"), merge.active():
        model.model.visual(pixels, grids, cu_seqlens=bounds)
    with merge.active():
        model.model.visual(pixels, grids)
    assert merge.runs[0].merged
    assert len(refused) == 1
