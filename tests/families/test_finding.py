"""Which family a model gets, and what happens to models that none knows."""

import pytest
import torch

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from feathervlm import PruningError, Unprunable, methods
from feathervlm.families import FAMILIES, find
from feathervlm.families.generic import Generic
from feathervlm.families.unsupported import UNSUPPORTED

PROMPTS = [tiny.prompt(2, seed=1), tiny.prompt(0, seed=2), tiny.prompt(1, seed=3)]


def stranger():
    llava = tiny.llava()
    llava.config.model_type = "martian"
    return llava


@torch.no_grad()
def test_a_model_that_no_family_knows_is_inferred_and_says_so():
    inputs = tiny.batch(*PROMPTS)
    model = tiny.llava()
    with feathervlm.prune(model, "feather:layers=2+4") as known:
        expected = model(**inputs).logits
    model.config.model_type = "martian"
    with feathervlm.prune(model, "feather:layers=2+4") as pruning:
        assert isinstance(pruning.family, Generic)
        assert torch.equal(model(**inputs).logits, expected)
    assert "no family knows this model" in str(pruning.report)
    assert "no family" not in str(known.report)


@torch.no_grad()
def test_a_run_that_is_no_square_is_refused():
    model = stranger()
    inputs = {
        "input_ids": torch.tensor([[1, 7, *[tiny.IMAGE] * 35, 8, 9]]),
        "pixel_values": torch.randn(1, 3, 48, 48),
    }
    with feathervlm.prune(model, "feather:layers=2+4"), pytest.raises(Unprunable, match="35 tokens is not a square"):
        model(**inputs)


@pytest.mark.parametrize("way", ["forward", "generate"])
@torch.no_grad()
def test_squares_that_are_not_the_features_are_an_error(way):
    model = stranger()
    ids = [1, 7, *[tiny.IMAGE] * 25, 8, *[tiny.IMAGE] * 9, 8, 9]
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(1, 3, 48, 48)}
    with (
        feathervlm.prune(model, "feather:layers=2+4"),
        pytest.raises(PruningError, match="made 36 features where its image grids say 34"),
    ):
        model(**inputs) if way == "forward" else model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_models_that_cannot_be_pruned_are_refused_by_name(kind):
    model = tiny.llava()
    model.config.model_type = kind
    with pytest.raises(Unprunable, match=rf"\({kind}\) cannot be pruned: "):
        feathervlm.prune(model, "fastv")


def test_no_model_is_both_known_and_refused():
    assert not set(FAMILIES) & set(UNSUPPORTED)
    assert all(not reason.endswith(".") for reason in UNSUPPORTED.values())


def test_a_given_layout_keeps_what_the_family_knows_of_the_decoder():
    model = FAMILY_CASES["qwen3_vl"].model()
    inputs = FAMILY_CASES["qwen3_vl"].inputs(FAMILY_CASES["qwen3_vl"].prompt(0))
    with feathervlm.prune(model, "feather:layers=1+2") as pruning, torch.no_grad():
        expected = model(**inputs).logits
    layout = pruning.report.record.layout
    with feathervlm.prune(model, methods.Feather(layers=(1, 2)), layout=layout), torch.no_grad():
        assert find(model, layout).injected == 2
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("family", dict.fromkeys(FAMILIES.values()), ids=lambda family: family.title)
def test_every_family_says_what_it_is(family):
    assert family.title
    assert family.geometry
    assert family.__module__.startswith("feathervlm.families.")
    assert set(family.modalities) <= {"image", "video"}
