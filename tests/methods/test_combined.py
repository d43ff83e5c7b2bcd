"""Several methods in one schedule: how it is written, and that it is what the methods do one after the other."""

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import methods
from feathervlm.core import Chained, PruningError, Schedule, Stage
from feathervlm.methods import Combined, DivPrune, FastV, Feather, RandomKeep, ToMe, get


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("tome:keep=0.6+feather:layers=8+16,stride=2", (ToMe(0.6), Feather((8, 16), stride=2))),
        ("tome + divprune:keep=0.5+ feather", (ToMe(), DivPrune(keep=0.5), Feather())),
        ("divprune+before-llm:method=(random:layer=2+fastv:layer=3)", None),
        ("random:layer=1+fastv", (RandomKeep(layer=1), FastV())),
    ],
)
def test_a_spec_is_read_as_it_is_written(spec, parts, tmp_path):
    method = get(spec)
    assert parts is None or method == Combined(parts)
    assert get(str(method)) == method
    assert Combined(list(method.methods)) == method
    method.schedule().save(tmp_path / "mine.json")
    assert Schedule.load(tmp_path / "mine.json") == method.schedule()


def test_stages_follow_each_other_and_those_at_one_layer_are_one():
    tome, divprune, feather = ToMe(0.6).schedule(), DivPrune(keep=0.3).schedule(), Feather().schedule()
    schedule = get("tome:keep=0.6+divprune:keep=0.3+feather").schedule()
    both = Stage(0, Chained(tome.stages[0].select, divprune.stages[0].select))
    assert schedule == Schedule(both, *feather.stages, encoder=tome.encoder)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tome+ailurus", "tome and ailurus both work in the vision encoder"),
        ("pool:layer=0+divprune", "two stages at layer 0, of which the first merges"),
        ("tome+fether", "no method 'fether'"),
        ("tome+", "no method 'tome[+]'"),
        ("+tome", "'' is not a method"),
        ("tome+fastvlm:keep=0.5", "no method 'fastvlm'"),
        ("tome+visionzip", "its attention and keys are not those of single patches"),
    ],
)
def test_what_cannot_be_joined_is_one_sentence(spec, said):
    with pytest.raises(PruningError, match=said):
        get(spec)


def test_fewer_than_two_or_other_things_are_no_methods():
    for wrong in ((), (Feather(),), (Feather(), "fastv")):
        with pytest.raises(PruningError, match="must be two or more methods"):
            Combined(wrong)


def test_stages_out_of_order_are_refused_by_their_layers():
    with pytest.raises(PruningError, match="fall on layers 8, 2 of 32"):
        get("fastv:layer=8+random:layer=2").schedule().at_layers(32)


def test_the_budget_is_that_of_the_last_method_that_has_one():
    grids = [(1, 24, 24)]
    solved = get("uniform:layer=0,stride=2+fastv:layer=4").solve(60, grids, 32)
    assert solved.schedule().average_tokens(grids, 32) == pytest.approx(60, abs=0.5)
    assert solved.methods[0] == methods.Uniform(layer=0, stride=2)
    with pytest.raises(PruningError, match="budget parameter"):
        get("uniform:layer=0+pool:layer=2").with_budget(0.5)


def test_each_method_gets_what_the_one_before_leaves():
    """The stages of a report: the tokens of the first method alone, and of the second among them."""
    model, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1), tiny.prompt(2, seed=2))

    def kept(method):
        with feathervlm.prune(model, method) as pruning, torch.no_grad():
            model(**inputs)
        return [[set(tokens.tolist()) for tokens in stage.kept] for stage in pruning.report.stages]

    one, other = "divprune:keep=0.5", "random:layer=2,keep=0.3"
    first, alone, both = kept(one), kept(other), kept(f"{one}+{other}")
    assert both[0] == first[0]
    for sample, left, free in zip(both[1], first[0], alone[0], strict=True):
        assert sample <= left
        assert len(sample) == len(free)
