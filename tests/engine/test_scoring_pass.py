"""Scoring passes: how far they run, and that they leave nothing."""

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import methods
from laws import traces


def layers_run(llava, inputs, method, generates=False):
    """Return the indices of the layers that ran, in order, during a prompt."""
    ran, handles = [], []
    for index, layer in enumerate(llava.model.language_model.layers):
        handles.append(layer.self_attn.register_forward_pre_hook(lambda module, args, index=index: ran.append(index)))
    with feathervlm.prune(llava, method) as pruning, torch.no_grad():
        if generates:
            llava.generate(**inputs, max_new_tokens=1, do_sample=False)
        else:
            llava(**inputs)
        assert pruning.report.pruned
    for handle in handles:
        handle.remove()
    return ran


@pytest.mark.parametrize("generates", [False, True])
@pytest.mark.parametrize("layers", [(2, 4), (1, 3)])
def test_a_scoring_pass_ends_before_the_layer_of_its_last_stage(layers, generates):
    llava, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1), tiny.prompt(2, seed=2))
    before = traces(llava)
    method = methods.BeforeLLM(methods.Feather(layers=layers, keep=0.5))
    assert layers_run(llava, inputs, method, generates) == [*range(layers[-1]), *range(tiny.LAYERS)]
    assert traces(llava) == before


def test_an_inner_scoring_pass_runs_before_the_outer_one():
    llava, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1))
    method = methods.BeforeLLM(methods.BeforeLLM(methods.FastV(layer=2)))
    assert layers_run(llava, inputs, method) == [0, 1, *range(tiny.LAYERS)]
