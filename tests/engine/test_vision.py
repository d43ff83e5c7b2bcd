"""Attention inside the vision encoder: equal to what eager attention gives, and gone without a trace."""

import pytest
import torch
from helpers import traces
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import feathervlm
import zoo
from feathervlm import Schedule, Stage, Top, Unprunable, methods
from feathervlm.core.criteria import VisionAttention
from feathervlm.engine.vision import received

PROMPTS = [zoo.prompt(2, seed=1), zoo.prompt(0, seed=2), zoo.prompt(1, seed=3)]


def expected(llava, pixels, layer):
    """Per image the attention that its patches get, by the tower's own eager attention."""
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
    llava, inputs = zoo.llava(tower=tower, attention=attention), zoo.batch(*PROMPTS)
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
    llava, inputs = zoo.llava(), zoo.batch(*PROMPTS)
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
    llava, inputs = zoo.llava(), zoo.batch(PROMPTS[2])
    configs = [part.config for part in llava.model.vision_tower.modules() if hasattr(part, "config")]
    inputs["pixel_values"] = inputs["pixel_values"][..., :13]
    with feathervlm.prune(llava, "fastervlm"), pytest.raises((ValueError, RuntimeError)):
        llava(**inputs)
    now = [part.config for part in llava.model.vision_tower.modules() if hasattr(part, "config")]
    assert all(one is two for one, two in zip(configs, now, strict=True))


@torch.no_grad()
def test_one_layer_may_be_asked_for_from_both_ends():
    llava, inputs = zoo.llava(), zoo.batch(PROMPTS[2])
    both = Schedule(*(Stage(at=at, select=Top(VisionAttention(layer), 30 - at)) for at, layer in ((1, 1), (2, -1))))
    with feathervlm.prune(llava, both) as pruning:
        llava(**inputs)
    one, two = pruning.report.stages
    assert torch.equal(one.scores[0][one.kept[0]], two.scores[0])


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(Unprunable, match=r"has 2 attention layers that can be looked at; layers \[-3\]"):
        feathervlm.prune(zoo.llava(), "fastervlm:encoder_layer=-3")


@torch.no_grad()
def test_features_made_before_are_refused():
    llava, inputs = zoo.llava(), zoo.batch(PROMPTS[2])
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
