"""How often pruning makes the host wait for the device: once per stage whose size depends on the data, else never."""

import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import feathervlm
import tiny_models as tiny
from feathervlm import Grid, Schedule, Stage, Top, methods
from feathervlm.core import KeyNorm
from feathervlm.core.mergers.neighborhood import Neighborhood
from feathervlm.core.signals import Features
from laws import layout_of

READS = ["tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy", "nonzero", "cpu"]


@contextmanager
def counted(monkeypatch):
    """Collect the functions of feathervlm that read a tensor's values, while they do."""
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
    llm = tiny.llama()
    prompts = [tiny.prompt(1 + row % 2, seed=row) for row in range(batch)]
    inputs = tiny.batch(*prompts)
    layout = layout_of(inputs["input_ids"], tiny.IMAGE, tiny.SIDE)
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
    "sparsevlm": methods.SparseVLM(layers=(2, 3, 5)),
    "sparsevlm-plus": methods.SparseVLM(layers=(2, 3, 5), plus=True),
    "ivc-prune": methods.IVCPrune(layer=3),
    "surroundings": Schedule(
        Stage(2, Top(ATTENTION, 9), merge=Neighborhood(Features("projected"), KeyNorm(), pillars=0.3))
    ),
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
    llava, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1))
    with feathervlm.prune(llava, OPEN["feather"][0]), torch.no_grad():
        past = llava(**inputs, use_cache=True).past_key_values
        with counted(monkeypatch) as readers:
            for _ in range(3):
                llava(input_ids=torch.tensor([[9]]), past_key_values=past)
    assert readers == []


def test_plain_decoding_has_no_hooks_on_layers():
    llava, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1))
    seen = []
    with feathervlm.prune(llava, OPEN["feather"][0]), torch.no_grad():
        past = llava(**inputs, use_cache=True).past_key_values
        layer = llava.model.language_model.layers[5]
        handle = layer.register_forward_pre_hook(lambda *_: seen.append(len(layer._forward_pre_hooks)))
        llava(input_ids=torch.tensor([[9]]), past_key_values=past)
        handle.remove()
    assert seen == [1]


class Operations(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operations_of_a_step(layers, batch, method):
    llava = tiny.llava(num_hidden_layers=layers)
    inputs = tiny.batch(*[tiny.prompt(1 + row % 2, seed=row) for row in range(batch)])
    step = {"input_ids": torch.full((batch, 1), 9)}
    if batch > 1:
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        step |= {"attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
    with torch.no_grad(), nullcontext() if method is None else feathervlm.prune(llava, method):
        past = llava(**inputs, use_cache=True).past_key_values
        with Operations() as run:
            llava(**step, past_key_values=past)
    return run.count


@pytest.mark.parametrize("method", [OPEN["feather"][0], methods.FastV(layer=2)], ids=["feather", "fastv"])
def test_a_step_of_one_prompt_is_that_of_the_unpruned_model(method):
    assert operations_of_a_step(6, 1, method) == operations_of_a_step(6, 1, None)


def test_a_ragged_step_pays_for_a_mask_per_stage_whatever_the_depth():
    method = OPEN["feather"][0]
    extra = [operations_of_a_step(layers, 3, method) - operations_of_a_step(layers, 3, None) for layers in (6, 12)]
    assert 0 < extra[0] == extra[1] <= 30 * len(method.layers)
