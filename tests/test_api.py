"""`prune` on models that PEFT or `torch.compile` wraps, the warning of `strict=False`, and the public names."""

import importlib.metadata

import pytest
import torch
from torch import nn

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, UnprunedWarning
from feathervlm.api import unwrap
from laws import traces

METHOD = "feather:layers=2+4"
INPUTS = tiny.batch(tiny.prompt(1, seed=1), tiny.prompt(2, seed=2))


class Tuner(nn.Module):
    """The part of PEFT's structure that holds the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model.forward(*args, **kwargs)  # as PEFT did before it called the model


class Adapted(nn.Module):
    """A wrapper with the structure of PEFT's."""

    def __init__(self, model):
        super().__init__()
        self.base_model, self.peft_config = Tuner(model), {"default": None}

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)

    def generate(self, **kwargs):
        return self.get_base_model().generate(**kwargs)


def refuse(graph, inputs):
    raise AssertionError("a graph was made")


def compiled(model):
    return torch.compile(model, backend=refuse)


def compiled_in_place(model):
    model.compile(backend=refuse)
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend=refuse)
    return model


@pytest.mark.parametrize(
    "wrap",
    [Adapted, lambda model: compiled(Adapted(model)), lambda model: Adapted(compiled(model))],
    ids=["peft", "compiled peft", "peft of compiled"],
)
def test_the_model_inside_is_pruned(wrap):
    model = tiny.llava()
    outer = wrap(model)
    with feathervlm.prune(model, METHOD):
        expected = model.generate(**INPUTS, max_new_tokens=4)
    with feathervlm.prune(outer, METHOD) as pruning:
        assert pruning.model is model
        assert torch.equal(outer.generate(**INPUTS, max_new_tokens=4), expected)
    assert pruning.report.pruned


@pytest.mark.parametrize("wrap", [compiled, compiled_in_place, compiled_forward])
@torch.no_grad()
def test_compiled_models_run_without_their_graphs_while_they_are_pruned(wrap):
    model = tiny.llava()
    with feathervlm.prune(model, METHOD):
        expected = model(**INPUTS).logits
    outer = wrap(model)
    state = [dict(vars(module)) for module in (outer, model)]
    with feathervlm.prune(outer, METHOD) as pruning:
        assert pruning.model is model
        assert torch.equal(outer(**INPUTS).logits, expected)
    assert [dict(vars(module)) for module in (outer, model)] == state


def test_arguments_of_a_wrapper_reach_the_pruning_and_nothing_stays_on_it():
    model = tiny.llava()
    outer, before = Adapted(model), traces(Adapted(model))
    labels = INPUTS["input_ids"].clone()
    labels[:, :-4] = -100
    with feathervlm.prune(model, METHOD) as pruning:
        expected = model(**INPUTS, labels=labels).loss
    kept = pruning.report.stages[0].kept
    with feathervlm.prune(outer, METHOD) as pruning:
        torch.testing.assert_close(outer(**INPUTS, labels=labels).loss, expected)
    assert all(map(torch.equal, pruning.report.stages[0].kept, kept))
    assert traces(outer) == before


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of how PEFT calls transformers
def test_adapters_stay_active():
    peft = pytest.importorskip("peft")
    model = tiny.llava()
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    outer = peft.get_peft_model(model, config).eval()
    with torch.no_grad(), feathervlm.prune(outer, METHOD) as pruning:
        assert pruning.model is model
        adapted = outer(**INPUTS).logits
        with outer.disable_adapter():
            plain = outer(**INPUTS).logits
    assert pruning.report.pruned
    assert (adapted - plain).abs().max() > 1e-2


@pytest.mark.parametrize("wrong", [nn.Linear(2, 2), Adapted(nn.Linear(2, 2)), "llava"])
def test_what_holds_no_transformers_model_is_refused(wrong):
    with pytest.raises(PruningError, match=f"takes a transformers model.* not {type(wrong).__name__}"):
        feathervlm.prune(wrong, METHOD)


def test_a_wrapper_around_itself_ends():
    outer = Adapted(nn.Linear(2, 2))
    outer.get_base_model = lambda: outer
    with pytest.raises(PruningError, match="takes a transformers model"):
        unwrap(outer)


def test_a_model_that_runs_unpruned_has_a_warning_of_its_own():
    with pytest.warns(UnprunedWarning, match="runs unpruned: .* takes no images"):
        pruning = feathervlm.prune(tiny.llama(), METHOD, strict=False)
    assert not pruning.report.pruned


def test_every_public_name_is_listed_and_found():
    assert set(feathervlm.__all__) <= set(dir(feathervlm))
    assert feathervlm.__version__ == importlib.metadata.version("feathervlm")
    assert feathervlm.methods.Feather.__module__ == "feathervlm.methods.feather"
    with pytest.raises(AttributeError, match="'feathervlm' has no attribute 'nothing'"):
        _ = feathervlm.nothing
