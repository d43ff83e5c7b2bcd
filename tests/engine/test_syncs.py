"""How often pruning makes the host wait for the device: once per stage whose size depends on the data, else never."""

import sys
from contextlib import contextmanager

import pytest
import torch
from helpers import layout_of

import feathervlm
import zoo
from feathervlm import Grid, Schedule, Stage, Top, methods

READS = ["tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero", "cpu"]


@contextmanager
def counted(monkeypatch):
    """The functions of feathervlm that read a tensor's values, as they do."""
    readers = []

    def spy(name, original):
        def read(tensor, *args, **kwargs):
            frame = sys._getframe(1)
            if "feathervlm" in frame.f_code.co_filename:
                readers.append(frame.f_code.co_name)
            return original(tensor, *args, **kwargs)

        return read

    with monkeypatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, spy(name, getattr(torch.Tensor, name)))
        yield readers


def bare(method, monkeypatch, batch=1):
    llm = zoo.llama()
    prompts = [zoo.prompt(1 + row % 2, seed=row) for row in range(batch)]
    inputs = zoo.batch(*prompts)
    layout = layout_of(inputs["input_ids"], zoo.IMAGE, zoo.SIDE)
    if batch == 1:
        del inputs["attention_mask"]
    del inputs["pixel_values"]
    llm(**inputs)
    finished = []
    with feathervlm.prune(llm, method, layout=layout) as pruning, torch.no_grad(), counted(monkeypatch) as readers:
        handle = llm.model.layers[-1].register_forward_hook(lambda *_: finished.append(len(readers)))
        llm(**inputs)
        handle.remove()
        during, after = readers[: finished[0]], readers[finished[0] :]
        readers.clear()
    assert pruning.report.pruned
    return during, after


ATTENTION = feathervlm.LastTokenAttention(rope=False)
KNOWN = {
    "feather": methods.Feather(layers=(2, 4), keep=0.4, fixed=True),
    "fastv": methods.FastV(layer=2),
    "uniform": methods.Uniform(layer=0),
    "pyramiddrop": methods.PyramidDrop(layers=(1, 3, 4)),
    "random": methods.RandomKeep(layer=2),
    "pool": methods.AveragePool(layer=2),
    "shuffled": methods.ShuffledPositions(methods.FastV(layer=2)),
    "divprune": methods.DivPrune(keep=0.25),
    "greedyprune": methods.GreedyPrune(layer=2),
    "dart": methods.DART(layer=2),
    "cdpruner": methods.CDPruner(),
    "star": methods.STAR(layers=(0, 3)),
    "topv": methods.TopV(layer=2),
    "stretched": Schedule(Stage(2, Grid(3), "stretch")),
}
OPEN = {
    "feather": (methods.Feather(layers=(2, 4), keep=0.4), 1),  # the second stage keeps a share of what is known by then
    "ensemble": (methods.Ensemble(layer=2), 1),
    "one-of-two": (Schedule(Stage(2, Grid(2)), Stage(4, Top(ATTENTION, 9) & Grid(4))), 1),
}


@pytest.mark.parametrize("method", KNOWN)
def test_known_sizes_never_wait_for_the_device(method, monkeypatch):
    during, after = bare(KNOWN[method], monkeypatch)
    assert during == []
    assert after == ["__bool__"]  # the late check of where the prompt ends, which waits for that flag alone


@pytest.mark.parametrize("method", OPEN)
def test_open_sizes_wait_once_per_stage(method, monkeypatch):
    method, stages = OPEN[method]
    during, _ = bare(method, monkeypatch)
    assert during == ["_count"] * stages


def test_a_ragged_batch_waits_once_per_stage(monkeypatch):
    during, _ = bare(methods.PyramidDrop(layers=(1, 3, 4)), monkeypatch, batch=3)
    assert during == ["_count"] * 3


def test_decoding_never_waits(monkeypatch):
    llava, inputs = zoo.llava(), zoo.batch(zoo.prompt(1, seed=1))
    with feathervlm.prune(llava, OPEN["feather"][0]), torch.no_grad():
        past = llava(**inputs, use_cache=True).past_key_values
        with counted(monkeypatch) as readers:
            for _ in range(3):
                llava(input_ids=torch.tensor([[9]]), past_key_values=past)
    assert readers == []


def test_plain_decoding_has_no_hooks_on_layers():
    llava, inputs = zoo.llava(), zoo.batch(zoo.prompt(1, seed=1))
    seen = []
    with feathervlm.prune(llava, OPEN["feather"][0]), torch.no_grad():
        past = llava(**inputs, use_cache=True).past_key_values
        layer = llava.model.language_model.layers[5]
        handle = layer.register_forward_pre_hook(lambda *_: seen.append(len(layer._forward_pre_hooks)))
        llava(input_ids=torch.tensor([[9]]), past_key_values=past)
        handle.remove()
    assert seen == [1]
