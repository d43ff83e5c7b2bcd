"""Attention inside the vision encoder equals eager attention, and leaves no trace on the model."""

import gc
from dataclasses import dataclass

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_window_index

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from feathervlm import PruningError, Schedule, Stage, Top, Unprunable, methods
from feathervlm.core import KeepAll
from feathervlm.core.criteria.attention import VisionAttention
from feathervlm.core.signals import EncoderAttention, EncoderKeys
from feathervlm.engine.vision.probe import EncoderProbe, received
from laws import traces

PROMPTS = [tiny.prompt(2, seed=1), tiny.prompt(0, seed=2), tiny.prompt(1, seed=3)]


def expected(llava, pixels, layer):
    """Return the attention that the patches of every image receive in the encoder's own eager attention."""
    weights = []
    module = llava.model.vision_tower.encoder.layers[layer].self_attn
    handle = module.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    usual = module.config._attn_implementation
    module.config._attn_implementation = "eager"
    try:
        llava.model.vision_tower(pixels)
    finally:
        handle.remove()
        module.config._attn_implementation = usual
    first = hasattr(llava.model.vision_tower.embeddings, "class_embedding")
    mean = weights[0].mean(1)
    return mean[:, 0, 1:] if first else mean.mean(1)


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize("layer", [-2, -1, 0])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_scores_are_the_tower_s_own_attention(tower, layer, way, attention):
    llava, inputs = tiny.llava(tower=tower, attention=attention), tiny.batch(*PROMPTS)
    with feathervlm.prune(llava, Schedule(Stage(at=1, select=Top(VisionAttention(layer), 9)))) as pruning:
        if way == "forward":
            llava(**inputs)
        else:
            llava.generate(**inputs, max_new_tokens=2, num_return_sequences=2, do_sample=True)
    found = pruning.report.stages[0].scores
    wanted = expected(llava, inputs["pixel_values"], layer)
    repeats = len(found) // len(PROMPTS)
    torch.testing.assert_close(found[0], wanted[:2].flatten(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found[2 * repeats], wanted[2], atol=1e-6, rtol=1e-4)
    assert found[repeats].numel() == 0


@torch.no_grad()
def test_looking_leaves_no_trace_and_changes_nothing():
    llava, inputs = tiny.llava(), tiny.batch(*PROMPTS)
    before, known = traces(llava), set(ALL_ATTENTION_FUNCTIONS)
    plain = llava(**inputs).logits
    with feathervlm.prune(llava, methods.FasterVLM(layer=2, keep=1.0)):
        assert torch.equal(llava(**inputs).logits, plain)
        inside = {id(part.config) for part in llava.model.vision_tower.modules() if hasattr(part, "config")}
    assert traces(llava) == before
    assert set(ALL_ATTENTION_FUNCTIONS) == known
    assert len(inside) == len(
        {id(part.config) for part in llava.model.vision_tower.modules() if hasattr(part, "config")}
    )


@torch.no_grad()
def test_an_encoder_that_fails_is_put_back():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[2])
    configs = [part.config for part in llava.model.vision_tower.modules() if hasattr(part, "config")]
    inputs["pixel_values"] = inputs["pixel_values"][..., :13]
    with feathervlm.prune(llava, "fastervlm"), pytest.raises((ValueError, RuntimeError)):
        llava(**inputs)
    now = [part.config for part in llava.model.vision_tower.modules() if hasattr(part, "config")]
    assert all(one is two for one, two in zip(configs, now, strict=True))


@torch.no_grad()
def test_one_layer_may_be_asked_for_from_both_ends():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[2])
    both = Schedule(*(Stage(at=at, select=Top(VisionAttention(layer), 30 - at)) for at, layer in ((1, 1), (2, -1))))
    with feathervlm.prune(llava, both) as pruning:
        llava(**inputs)
    one, two = pruning.report.stages
    assert torch.equal(one.scores[0][one.kept[0]], two.scores[0])


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(Unprunable, match=r"2 attention layers that can be hooked; choose .* instead of \[-3\]"):
        feathervlm.prune(tiny.llava(), "fastervlm:encoder_layer=-3")


@torch.no_grad()
def test_features_made_before_are_refused():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[2])
    features = llava.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    with feathervlm.prune(llava, "fastervlm"), pytest.raises(Unprunable, match=r"made before feathervlm\.prune"):
        llava(**inputs, mm_encoder_outputs={"image": features})


@pytest.mark.parametrize("mask", ["none", "bool", "additive", "row"])
@pytest.mark.parametrize("from_first", [True, False])
def test_received_attention_by_hand(mask, from_first):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 700, 8, generator=generator)
    key = torch.randn(2, 2, 700, 8, generator=generator)
    allowed = torch.rand(2, 1, 700, 700, generator=generator) > 0.3
    if mask == "row":
        allowed = allowed[:, :, :1]
    logits = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    if mask != "none":
        logits = logits.masked_fill(~allowed, float("-inf"))
    weights = logits.softmax(-1).mean(1)
    wanted = weights[:, 0] if from_first else weights.mean(1)
    given = {"none": None, "additive": torch.where(allowed, 0.0, torch.finfo(torch.float32).min)}.get(mask, allowed)
    torch.testing.assert_close(received(query, key, given, 0.3, from_first), wanted, atol=1e-6, rtol=1e-4)


@dataclass(frozen=True)
class Reading(KeepAll):
    """Keeps every token, and records the signals of the encoder."""

    signal: EncoderAttention | EncoderKeys
    read: list

    def signals(self):
        yield self.signal

    def select(self, tokens):
        self.read[:] = [tokens.signals.read(self.signal)]
        return super().select(tokens)


def seen(model, inputs, *signals, way="forward"):
    """Return each signal of a prompt, (batch, visual, ...)."""
    read = [[] for _ in signals]
    stages = [Stage(at, Reading(*each)) for at, each in enumerate(zip(signals, read, strict=True))]
    with feathervlm.prune(model, Schedule(*stages)), torch.no_grad():
        if way == "forward":
            model(**inputs)
        else:
            model.generate(**inputs, max_new_tokens=2, num_return_sequences=2, do_sample=True)
    return [each for [each] in read]


def projections(llava, pixels, layer):
    """Return the outputs of a layer's q and k projections, (images, 1 + patches, dim) each."""
    found, module = {}, llava.model.vision_tower.encoder.layers[layer].self_attn
    handles = [
        part.register_forward_hook(lambda module, args, output, name=name: found.update({name: output}))
        for name, part in (("q", module.q_proj), ("k", module.k_proj))
    ]
    llava.model.vision_tower(pixels)
    for handle in handles:
        handle.remove()
    return found["q"], found["k"]


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@torch.no_grad()
def test_keys_received_attention_and_joint_heads_by_hand(tower, way):
    llava, inputs = tiny.llava(tower=tower), tiny.batch(*PROMPTS)
    asked = [EncoderKeys(-1), EncoderKeys(0, "joint"), EncoderAttention(-2, "received"), EncoderAttention(0)]
    asked += [EncoderAttention(-1, heads="joint"), EncoderAttention(-1, "received", "joint")]
    found = seen(llava, inputs, *asked, way=way)
    first = int(tower == "clip")
    for layer in (0, 1):
        query, key = projections(llava, inputs["pixel_values"], layer)
        split = [states.unflatten(-1, (2, 16)).transpose(1, 2) for states in (query, key)]
        heads = (split[0] @ split[1].transpose(-1, -2) * 16**-0.5).softmax(-1).mean(1)
        joint = (query @ key.transpose(-1, -2) * 32**-0.5).softmax(-1)
        cls, all_, cls_joint, all_joint = heads[:, 0], heads.mean(1), joint[:, 0], joint.mean(1)
        if not first:
            cls, cls_joint = all_, all_joint
        wanted = (
            [None, key, all_, cls, None, None]
            if layer == 0
            else [split[1].mean(1), None, None, None, cls_joint, all_joint]
        )
        for one, other in zip(found, wanted, strict=True):
            if other is not None:
                repeats = len(one) // len(PROMPTS)
                other = other[:, first:]
                torch.testing.assert_close(one[0], other[:2].flatten(0, 1), atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(one[2 * repeats, :36], other[2], atol=1e-5, rtol=1e-4)
    assert found[0].shape[2:] == (16,)
    assert found[1].shape[2:] == (32,)
    assert (found[2] - found[3]).abs().max() > 1e-4 or not first


@torch.no_grad()
def test_keys_of_windows_are_rotated_averaged_and_in_order():
    case = FAMILY_CASES["qwen2_5_vl"]
    model, inputs = case.model(), case.inputs(case.prompts()[0])
    given = []
    module = [part for part in model.model.visual.modules() if type(part).__name__.endswith("Attention")][-1]
    handle = module.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    [found] = seen(model, inputs, EncoderKeys(-1))
    handle.remove()
    (args, kwargs) = given[0]
    states = args[0] if args else kwargs["hidden_states"]
    query, key, _ = module.qkv(states).reshape(len(states), 3, module.num_heads, -1).unbind(1)
    key = apply_rotary_pos_emb_vision(query, key, *kwargs["position_embeddings"])[1].mean(1)
    config = model.config.vision_config
    order, _ = get_vision_window_index(
        inputs["image_grid_thw"],
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    merged, wanted = key.unflatten(0, (-1, config.spatial_merge_size**2)).mean(1), torch.empty(len(order), key.shape[1])
    wanted[order] = merged
    assert order.tolist() != sorted(order.tolist())
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_layer_may_be_a_fraction_of_the_depth():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[2])
    half, last, tenth, first = seen(llava, inputs, *map(EncoderKeys, (0.5, 1, 0.1, 0)))
    assert torch.equal(half, last)
    assert torch.equal(tenth, first)
    assert not torch.equal(half, first)


@pytest.mark.parametrize("options", [{"layer": 1.5}, {"layer": True}, {"source": "patch"}, {"heads": "max"}])
def test_what_no_encoder_has_is_named(options):
    (name,) = options
    with pytest.raises(PruningError, match=f"{name}="):
        VisionAttention(**options)


@pytest.mark.parametrize("name", ["llava_next", "internvl", "qwen2_5_vl", "qwen2_5_vl-video", "qwen3_vl", "idefics3"])
def test_what_is_read_of_a_batch_is_read_one_by_one(name):
    case = FAMILY_CASES[name]
    model, prompts = case.model(), case.prompts()
    asked = EncoderKeys(-1), EncoderAttention(-1, "received"), EncoderAttention(0, heads="joint")
    together = seen(model, case.inputs(*prompts), *asked)
    for sample, prompt in enumerate(prompts):
        if prompt[1]:
            for one, many in zip(seen(model, case.inputs(prompt), *asked), together, strict=True):
                width = one.shape[1]
                torch.testing.assert_close(one[0], many[sample, :width], atol=1e-5, rtol=1e-4)
                assert one.abs().sum() > 0


@torch.no_grad()
def test_a_layer_that_the_encoder_leaves_out_is_refused():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[2])
    tower = llava.model.vision_tower
    tower.spare = type(tower.encoder.layers[0].self_attn)(tower.config)
    with (
        feathervlm.prune(llava, "fastervlm:encoder_layer=-1"),
        pytest.raises(Unprunable, match=r"skips the layer of EncoderAttention\(layer=-1"),
    ):
        llava(**inputs)


def test_the_pooling_head_of_a_tower_is_no_layer():
    case = FAMILY_CASES["lfm2_vl"]
    tower = case.model().model.vision_tower
    assert any("AttentionPooling" in type(part).__name__ and hasattr(part, "config") for part in tower.modules())
    attention = [type(part).__name__ for part in EncoderProbe(case.model().model, [EncoderKeys(-1)]).modules.values()]
    assert attention == ["Siglip2Attention"]


@torch.no_grad()
def test_what_was_seen_is_let_go_with_the_encoder_s_output():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[2])
    with feathervlm.prune(llava, "visionzip") as pruning:
        output = llava.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
        (encoding,) = pruning._hooks._recorder.recent()
        llava(**inputs, mm_encoder_outputs={"image": output})
        assert set(encoding.inside) == {EncoderAttention(-2), EncoderKeys(-2)}
        del output, inputs
        gc.collect()
        assert encoding.inside == {}
