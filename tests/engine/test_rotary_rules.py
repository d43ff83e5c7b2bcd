"""Text models rotate and norm by the rules of the family that knows them, with or without images."""

import pytest
import torch
import transformers as tf

import feathervlm
import tiny_models as tiny
from feathervlm import LastTokenAttention, Schedule, Stage, Top
from feathervlm.families import rotary_rules
from laws import layout_of

KINDS = ["sliding_attention", "full_attention"] * 3
PROMPT = [1, 5, 6, *[tiny.IMAGE] * tiny.SIDE**2, 7, 8, 9]


def cohere2():
    config = tf.Cohere2Config(**tiny.sizes(layer_types=KINDS, sliding_window=200, attn_implementation="eager"))
    return tiny.randomize(tf.Cohere2ForCausalLM(config)), [True, False] * 3


def exaone4():
    config = tf.Exaone4Config(**tiny.sizes(layer_types=KINDS, sliding_window=200, attn_implementation="eager"))
    return tiny.randomize(tf.Exaone4ForCausalLM(config)), [True, False] * 3


def hunyuan():
    config = tf.HunYuanDenseV1Config(**tiny.sizes(attn_implementation="eager"))
    model = tiny.randomize(tf.HunYuanDenseV1ForCausalLM(config))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "query_layernorm" in name or "key_layernorm" in name:
                weight.copy_(torch.rand(len(weight), generator=torch.Generator().manual_seed(1)) + 0.5)
    return model, [True] * 6


def llama():
    return tiny.llama("eager"), [True] * 6


@pytest.mark.parametrize("make", [cohere2, exaone4, hunyuan, llama])
def test_layers_that_rotate(make):
    model, rotate = make()
    assert [rotary_rules(model).rotates(layer) for layer in range(6)] == rotate


@pytest.mark.parametrize("make", [cohere2, exaone4, hunyuan, llama])
@pytest.mark.parametrize("at", [2, 4])
@torch.no_grad()
def test_scores_are_the_eager_attention_of_a_plain_decoder(make, at):
    model, ids = make()[0], torch.tensor([PROMPT])
    attention = model(ids, output_attentions=True).attentions[at - 1][0, :, -1].mean(0)
    schedule = Schedule(Stage(at, Top(LastTokenAttention(rope=True, over="all"), 0.5)))
    with feathervlm.prune(model, schedule, layout=layout_of(ids, tiny.IMAGE, tiny.SIDE)) as pruning:
        model(ids)
    visual = attention[ids[0] == tiny.IMAGE]
    torch.testing.assert_close(pruning.report.stages[0].scores[0], visual.float(), rtol=1e-4, atol=1e-6)
