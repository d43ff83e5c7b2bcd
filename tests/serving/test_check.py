"""Whether a model can be served with a method, from its config."""

import pytest

import feathervlm
import tiny_models as tiny
from feathervlm.integrations.vllm.architectures import architecture_of
from feathervlm.serving.check import check_plan, encoder_depth

SCORING = "before-llm:method=(fastv:layer=2)"


@pytest.mark.parametrize("text", ["llama", "qwen2", "qwen3"])
def test_a_decoder_with_a_known_structure_can_score(text):
    assert check_plan(SCORING, tiny.llava(text).config).scores


@pytest.mark.parametrize(("text", "reason"), [("mistral", "with a sliding window"), ("phi3", "a phi3 decoder")])
def test_other_decoders_are_served_without_a_scoring_pass(text, reason):
    config = tiny.llava(text).config
    with pytest.raises(feathervlm.PruningError, match=reason):
        check_plan(SCORING, config)
    assert check_plan("divprune:keep=0.25", config).kept((1, 6, 6)) == 9


def test_layers_of_the_encoder_are_those_that_run():
    config = tiny.llava(depth=4).config
    layers = architecture_of(config).encoder_layers(config)
    assert (encoder_depth(config), layers) == (4, 3)  # the projector takes the states of the last but one
    assert check_plan("fastervlm:encoder_layer=-2", config, layers)
    for method, known in (("fastervlm:encoder_layer=-1", layers), ("fastervlm", None)):
        with pytest.raises(feathervlm.PruningError, match="served"):
            check_plan(method, config, known)


def test_what_transformers_refuses_is_refused():
    with pytest.raises(feathervlm.PruningError, match="beyond this model's 6 layers"):
        check_plan("before-llm:method=(fastv:layer=9)", tiny.llava().config)


def test_models_that_the_plug_in_does_not_know_are_refused_by_name():
    config = tiny.llava().config
    config.model_type = "paligemma"
    with pytest.raises(feathervlm.PruningError, match="A paligemma cannot be served pruned with vLLM"):
        architecture_of(config)
    other = tiny.llava().config
    other.vision_config.model_type = "pixtral"
    with pytest.raises(feathervlm.PruningError, match="A llava with a pixtral"):
        architecture_of(other)
