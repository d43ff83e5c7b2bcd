from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm import methods
from feathervlm.core import (
    Grid,
    KeepAll,
    KeepNone,
    KNNDensity,
    LastTokenAttention,
    Pool,
    PruningError,
    Random,
    Schedule,
    Stage,
    Top,
)
from feathervlm.core.scoring_pass import Survivors, SurvivorsOf
from feathervlm.core.selectors.base import Union
from feathervlm.core.signals import Attention, Features
from feathervlm.core.spec import from_json, to_json
from feathervlm.methods import (
    KNN,
    AveragePool,
    BeforeLLM,
    Ensemble,
    FastV,
    Feather,
    PruMerge,
    PyramidDrop,
    RandomKeep,
    ShuffledPositions,
    TextOnly,
    Uniform,
    VisionZip,
    VScan,
    available,
    get,
)
from feathervlm.methods.describe import describe
from method_cases import PUBLISHED_LAYERS

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROPE, NO_ROPE = LastTokenAttention(rope=True, over="visual"), LastTokenAttention(rope=False, over="visual")
PRISMATIC = [(1, 27, 27)]

LAYERS = st.integers(0, 80) | st.floats(0, 1, exclude_max=True)
FRACTIONS = st.floats(1e-20, 1)
KEEPS = FRACTIONS | st.integers(1, 3000)
STRIDES = st.integers(1, 9)
FEATHERS = st.builds(Feather, st.tuples(LAYERS, LAYERS), FRACTIONS, STRIDES, st.booleans())
FASTVS = st.builds(FastV, LAYERS, KEEPS, st.booleans(), st.sampled_from(["visual", "all"]))
PYRAMIDS = st.builds(
    PyramidDrop,
    st.lists(LAYERS, min_size=1, max_size=5).map(tuple),
    FRACTIONS,
    st.sampled_from(["authors", "baseline"]),
)
OTHERS = (
    st.builds(Ensemble, LAYERS, KEEPS, STRIDES)
    | st.builds(KNN, LAYERS, st.integers(2, 3000), st.integers(1, 9), st.sampled_from(["vision", "projected"]))
    | st.builds(RandomKeep, LAYERS, KEEPS, st.integers(0, 2**40))
    | st.builds(Uniform, LAYERS, STRIDES | st.tuples(STRIDES, STRIDES, STRIDES))
    | st.builds(AveragePool, LAYERS, STRIDES)
    | st.builds(TextOnly)
)
POSITIONS, ENCODER_LAYERS = st.sampled_from(["preserve", "renumber"]), st.integers(-3, 30) | st.floats(0.01, 0.99)
MERGING = (
    st.builds(VisionZip, LAYERS, KEEPS, KEEPS, ENCODER_LAYERS, POSITIONS)
    | st.builds(
        VScan,
        st.tuples(LAYERS, LAYERS),
        KEEPS,
        FRACTIONS,
        st.sampled_from(["llava", "qwen"]),
        st.none() | ENCODER_LAYERS,
        st.none() | ENCODER_LAYERS,
        st.none() | STRIDES,
        POSITIONS,
    )
    | st.builds(PruMerge, LAYERS, st.booleans(), st.floats(0.1, 9), STRIDES, ENCODER_LAYERS, POSITIONS)
)
LATER = (FEATHERS | FASTVS | PYRAMIDS).filter(lambda method: all(stage.at > 0 for stage in method.schedule()))
SHUFFLED = st.builds(ShuffledPositions, st.none() | LATER, st.integers(0, 2**40))
METHODS = st.recursive(
    FEATHERS | FASTVS | PYRAMIDS | OTHERS | MERGING | SHUFFLED, lambda inner: st.builds(BeforeLLM, inner), max_leaves=3
)


@relaxed
@given(METHODS)
def test_the_written_form_of_any_method_makes_it_again(method):
    assert get(str(method)) == method
    assert str(get(str(method))) == str(method)
    assert from_json(to_json(method.schedule())) == method.schedule()


@pytest.mark.parametrize("name", available())
def test_every_method_builds_and_describes_itself(name):
    method = get(name)
    assert str(method) == method.name == name
    assert method.paper
    assert method.summary().endswith(".")
    assert method.summary() == method.summary().strip() != ""
    assert type(method).__name__ in methods.__all__
    assert method.budget_parameter is None or method.budget_parameter in {field.name for field in fields(method)}


@pytest.mark.parametrize("name", available())
def test_default_layers_are_the_published_ones(name):
    assert get(name).schedule().at_layers(32) == PUBLISHED_LAYERS[name]


CROWDED = {"sparsevlm": "1, 1, 2", "reroute": "1, 1, 2, 3", "swiftvlm": "1, 1, 2"}
"""Methods whose stages fall together in a model of four layers."""


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("depth", [4, 12, 24, 28, 32, 40, 80])
def test_default_layers_move_with_the_depth(name, depth):
    if depth == 4 and name in CROWDED:
        with pytest.raises(PruningError, match=f"fall on layers {CROWDED[name]} of 4"):
            get(name).schedule().at_layers(depth)
        return
    layers = get(name).schedule().at_layers(depth)
    assert list(layers) == sorted(set(layers))
    assert all(
        abs(layer - depth * wanted / 32) <= 1 for layer, wanted in zip(layers, PUBLISHED_LAYERS[name], strict=True)
    )


REACH = {"ivc-prune": (365.0, 729.0), "nuwa": (1.0, 416.5)}
"""Methods whose first half sees all tokens, or whose second sees a seventh of them."""


@pytest.mark.parametrize("name", [name for name in available() if get(name).budget_parameter])
@pytest.mark.parametrize("average", [250, 300.5, 450])
def test_every_free_parameter_can_be_solved_for(name, average):
    if name in REACH and not REACH[name][0] <= average <= REACH[name][1]:
        with pytest.raises(PruningError, match=f"spans {REACH[name][0]} to {REACH[name][1]} tokens"):
            get(name).solve(average, PRISMATIC, 32)
        return
    solved = get(name).solve(average, PRISMATIC, 32)
    assert type(solved) is type(get(name))
    assert solved.schedule().average_tokens(PRISMATIC, 32) == pytest.approx(average, abs=0.5)


def test_feather_reads_like_its_definition():
    assert Feather(layers=(8, 16)).schedule() == Schedule(
        Stage(at=8, select=Top(NO_ROPE, keep=0.30) | Grid(stride=3)),
        Stage(at=16, select=Top(NO_ROPE, keep=0.09, of="current")),
    )
    assert Feather().schedule() == Schedule(
        Stage(at=1 / 4, select=Top(NO_ROPE, keep=0.30) | Grid(stride=3)),
        Stage(at=1 / 2, select=Top(NO_ROPE, keep=0.09, of="current")),
    )


def test_parameters_of_feather():
    assert Feather(layers=(4, 6), keep=0.5, stride=2, fixed=True).schedule() == Schedule(
        Stage(4, Union(Top(NO_ROPE, 0.5), Grid(2), fixed=True)), Stage(6, Top(NO_ROPE, 0.25, of="current"))
    )


def test_feather_costs_what_the_paper_says():
    tokens = Feather().schedule().tokens_per_layer(PRISMATIC, 32)
    assert tokens[7:8] + tokens[16:] == [729] + [24] * 16
    assert 267 <= tokens[8] == tokens[15] <= 277


@pytest.mark.parametrize(("keep", "tokens"), [(0.25, 182), (0.5, 364), (196, 196), (1, 729)])
def test_fastv(keep, tokens):
    method = FastV(layer=3, keep=keep)
    assert method.schedule() == Schedule(Stage(3, Top(ROPE, keep)))
    assert method.schedule().tokens_per_layer(PRISMATIC, 32) == [729] * 3 + [tokens] * 29


def test_fastv_as_its_authors_run_it_and_without_rope():
    assert FastV().schedule() == Schedule(Stage(3 / 32, Top(ROPE, 0.25)))
    assert FastV(layer=2, keep=0.5, over="all").schedule() == Schedule(
        Stage(2, Top(LastTokenAttention(over="all"), 0.5))
    )
    assert FastV(layer=3, rope=False).schedule() == Schedule(Stage(3, Top(NO_ROPE, 0.25)))


def test_pyramiddrop_of_its_authors():
    scores = LastTokenAttention(rope=True, over="all", layer="K")
    assert PyramidDrop(layers=(8, 16, 24)).schedule() == Schedule(
        Stage(8, Top(scores, 0.5), positions="renumber"),
        Stage(16, Top(scores, 0.25), positions="renumber"),
        Stage(24, Top(scores, 0.125), positions="renumber"),
    )
    tokens = PyramidDrop().schedule().tokens_per_layer([(1, 24, 24)], 32)
    assert tokens == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8


@pytest.mark.parametrize(("keep", "counts"), [(0.3, (218, 65, 19)), (0.6, (437, 262, 157))])
def test_pyramiddrop_as_the_baseline_of_feather(keep, counts):
    schedule = PyramidDrop(layers=(8, 16, 24), keep=keep, form="baseline").schedule()
    assert schedule == Schedule(*(Stage(layer, Top(ROPE, keep, of="current")) for layer in (8, 16, 24)))
    assert tuple(schedule.tokens_per_layer(PRISMATIC, 32)[8::8]) == counts


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        (Ensemble(layer=3), Stage(3, Top(NO_ROPE, 0.25) | Grid(3))),
        (Ensemble(layer=8, keep=0.3, stride=4), Stage(8, Top(NO_ROPE, 0.3) | Grid(4))),
        (KNN(layer=3), Stage(3, Top(KNNDensity(5, "vision"), 196))),
        (KNN(layer=8, count=64, neighbors=3, features="projected"), Stage(8, Top(KNNDensity(3, "projected"), 64))),
        (Uniform(layer=3), Stage(3, Grid(2))),
        (Uniform(layer=8, stride=3), Stage(8, Grid(3))),
        (RandomKeep(layer=3), Stage(3, Random(0.25, seed=0))),
        (RandomKeep(layer=8, keep=196, seed=7), Stage(8, Random(196, seed=7))),
        (TextOnly(), Stage(0, KeepNone())),
        (AveragePool(), Stage(0, Grid(2), merge=Pool(2))),
        (AveragePool(layer=8, stride=3), Stage(8, Grid(3), merge=Pool(3))),
        (ShuffledPositions(seed=7), Stage(0, KeepAll(), positions="shuffle", seed=7)),
        (BeforeLLM(FastV()), Stage(0, SurvivorsOf(Survivors(FastV().schedule())))),
    ],
)
def test_methods_of_one_stage(method, stage):
    assert method.schedule() == Schedule(stage)


@pytest.mark.parametrize(
    ("method", "average"),
    [(Uniform(), 196), (KNN(), 196), (RandomKeep(), 182), (FastV(), 182), (Ensemble(), 182 + 81 * (1 - 182 / 729))],
)
def test_tokens_that_remain_after_the_early_layers(method, average):
    tokens = method.schedule().tokens_per_layer(PRISMATIC, 32)
    assert tokens == pytest.approx([729] * 3 + [average] * 29)


@pytest.mark.parametrize("inner", [FastV(keep=0.5), Feather(), Uniform(), TextOnly()])
def test_before_llm_costs_the_survivors_from_the_first_layer_on(inner):
    left = inner.schedule().tokens_per_layer(PRISMATIC, 32)[-1]
    assert BeforeLLM(inner).schedule().tokens_per_layer(PRISMATIC, 32) == [left] * 32


@pytest.mark.parametrize(
    ("method", "signals"),
    [
        (Feather(), {Attention("K-1", rope=False, over="visual")}),
        (FastV(), {Attention("K-1", rope=True, over="visual")}),
        (PyramidDrop(), {Attention("K", rope=True, over="all")}),
        (Ensemble(), {Attention("K-1", rope=False, over="visual")}),
        (KNN(), {Features("vision")}),
        (Uniform(), set()),
        (RandomKeep(), set()),
        (TextOnly(), set()),
        (AveragePool(), set()),
        (ShuffledPositions(), set()),
        (ShuffledPositions(FastV()), {Attention("K-1", rope=True, over="visual")}),
        (BeforeLLM(), {Survivors(FastV().schedule())}),
    ],
)
def test_methods_ask_for_no_more_than_their_criteria(method, signals):
    assert {signal for stage in method.schedule() for signal in stage.signals()} == signals


def test_shuffled_positions_prune_as_the_method_inside():
    shuffle = Stage(0, KeepAll(), positions="shuffle")
    assert ShuffledPositions(Feather()).schedule() == Schedule(shuffle, *Feather().schedule())
    tokens = ShuffledPositions(Feather()).schedule().tokens_per_layer(PRISMATIC, 32)
    assert tokens == Feather().schedule().tokens_per_layer(PRISMATIC, 32)
    assert ShuffledPositions().schedule().average_tokens(PRISMATIC, 32) == 729


@pytest.mark.parametrize("inner", [Uniform(layer=0), FastV(layer=0.0), TextOnly(), BeforeLLM(), ShuffledPositions()])
def test_shuffled_positions_have_layer_0_to_themselves(inner):
    with pytest.raises(PruningError, match=f"{inner.name}.* has a stage at layer 0"):
        ShuffledPositions(inner)


def test_merging_and_moving_are_described():
    (pool,), (shuffle, prune) = (
        describe(get(spec))["stages"] for spec in ("pool", "shuffled-positions:method=(fastv)")
    )
    assert (pool["tokens_of_576"], pool["merged"], pool["positions"]) == (144, True, "preserve")
    assert (shuffle["tokens_of_576"], shuffle["merged"], shuffle["positions"]) == (576, False, "shuffle")
    assert (prune["tokens_of_576"], prune["exact"]) == (144, True)
    assert describe(get("shuffled-positions"))["parameters"][0] == {
        "name": "method",
        "type": "method | none",
        "default": "none",
    }


def test_layers_in_the_wrong_order_are_refused_by_the_model():
    with pytest.raises(PruningError, match="16, 8 of 32"):
        Feather(layers=(16, 8)).schedule().at_layers(32)
