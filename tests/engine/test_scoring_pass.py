"""Scoring passes: how far they run, and that they leave nothing."""

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import methods
from feathervlm.core.cost import flops
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


def pruned_report(model, inputs, method):
    with feathervlm.prune(model, method) as pruning, torch.no_grad():
        model(**inputs)
    return pruning.report


@pytest.mark.parametrize("depth", [1, 2])
def test_its_flops_are_those_of_the_layers_that_ran(depth):
    model, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1), tiny.prompt(2, seed=2))
    inner = methods.Feather(layers=(2, 4), keep=0.5)
    inside, outer = pruned_report(model, inputs, inner), inner
    for _ in range(depth):
        outer = methods.BeforeLLM(outer)
    report, layers = pruned_report(model, inputs, outer), inside.record.costs
    lengths, pruned, unpruned = inputs["attention_mask"].sum(1).tolist(), 0, 0
    for length, total, tokens in zip(lengths, inside.layout.counts, inside.tokens_per_layer, strict=True):
        text = length - total
        pruned += flops(layers[:4], [text + n for n in tokens[:4]]) + flops(layers, [text + tokens[-1]] * tiny.LAYERS)
        unpruned += flops(layers, [length] * tiny.LAYERS)
    assert report.flops_ratio == pruned / unpruned  # a second scoring pass ends before layer 0
    assert report.costs.scoring_ratio() < inside.flops_ratio
    assert "for scoring included" in str(report)
    assert "scoring" not in str(inside)


def test_the_passes_that_hide_tokens_from_an_answer_are_counted():
    model, prompt = tiny.llava(), tiny.prompt(1, seed=1)
    inputs = tiny.batch(prompt)
    method = methods.IVCPrune()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    asked, answered = pruned_report(model, inputs, method), pruned_report(model, {**inputs, "labels": labels}, method)
    assert not asked.record.scoring
    assert answered.flops_ratio > asked.flops_ratio
