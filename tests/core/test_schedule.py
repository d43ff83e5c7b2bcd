from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feathervlm.core import (
    Grid,
    KeepNone,
    KNNDensity,
    LastTokenAttention,
    PruningError,
    Random,
    Schedule,
    Stage,
    Top,
    solve,
)
from feathervlm.core.schedule import check_layer, layer_index
from feathervlm.core.selectors.base import Union

relaxed = settings(deadline=None)
ROPE, NO_ROPE = LastTokenAttention(), LastTokenAttention(rope=False)
LLAVA = [(1, 24, 24)]
PRISMATIC = [(1, 27, 27)]


@dataclass(frozen=True)
class Cut:
    keep: float = 1.0
    layers: tuple = (3,)
    union: bool = False

    def with_budget(self, value):
        return replace(self, keep=value)

    def schedule(self):
        stages = (Top(ROPE, self.keep**step) for step, _ in enumerate(self.layers, start=1))
        return Schedule(*(Stage(k, s | Grid(3) if self.union else s) for k, s in zip(self.layers, stages, strict=True)))


@pytest.mark.parametrize(
    ("layer", "depth", "expected"),
    [
        *[(3 / 32, depth, index) for depth, index in ((32, 3), (24, 2), (12, 1), (2, 1))],
        *[(1 / 4, depth, index) for depth, index in ((32, 8), (24, 6), (12, 3), (2, 1))],
        *[(1 / 2, depth, index) for depth, index in ((32, 16), (24, 12), (12, 6), (2, 1))],
        (3 / 4, 32, 24),
        (3 / 32, 28, 3),  # 2.625
        (3 / 32, 40, 4),  # 3.75
        (1 / 4, 26, 7),  # halves go up
        (0.001, 32, 1),
        (0.999, 32, 31),
        (0.0, 32, 0),
        (0, 32, 0),
        (31, 32, 31),
    ],
)
def test_layers_of_a_model(layer, depth, expected):
    assert layer_index(layer, depth) == expected


@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(2, 100))
def test_a_fraction_is_a_layer_with_one_before_it(layer, depth):
    check_layer(layer)
    index = layer_index(layer, depth)
    assert 1 <= index <= depth - 1
    assert abs(index - layer * depth) <= 0.5 or index in (1, depth - 1)


@pytest.mark.parametrize("layer", [32, 40])
def test_a_layer_beyond_the_depth_is_named(layer):
    with pytest.raises(PruningError, match=rf"Layer {layer} is beyond this model's 32 layers \(0 to 31\)"):
        layer_index(layer, 32)


@pytest.mark.parametrize("layer", [-1, -0.5, True, None, "8", (8,), 1.0, 8.0])
def test_a_bad_layer_is_named(layer):
    with pytest.raises(PruningError) as error:
        Stage(layer, Grid(2))
    assert f"at={layer!r}" in str(error.value)


def test_a_layer_as_a_float_says_what_to_write():
    with pytest.raises(PruningError, match="for layer 8 write 8"):
        check_layer(8.0)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Stage(3, Grid(2), positions="keep"), "positions='keep'"),
        (lambda: Stage(3, ROPE), "LastTokenAttention"),
        (lambda: Stage(3, None), "None"),
        (lambda: Stage(3, Grid(2), merge=Grid(2)), "Grid(stride=2)"),
        (lambda: Stage(3, Grid(2), merge="mean"), "'mean'"),
        (lambda: Stage(3, Grid(2), seed=-1), "seed=-1"),
        (lambda: Stage(3, Grid(2), seed=2**63), f"seed={2**63}"),
        (lambda: Schedule(Grid(2)), "Grid(stride=2)"),
        (lambda: Schedule([Stage(3, Grid(2))]), "[Stage("),
    ],
)
def test_what_is_no_stage_is_named(make, named):
    with pytest.raises(PruningError) as error:
        make()
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("layers", "depth", "named"),
    [((16, 8), 32, "16, 8 of 32"), ((8, 8), 32, "8, 8 of 32"), ((0.25, 0.5), 2, "1, 1 of 2"), ((8, 0.25), 32, "8, 8")],
)
def test_stages_out_of_order_are_named(layers, depth, named):
    schedule = Schedule(*(Stage(layer, Grid(2)) for layer in layers))
    with pytest.raises(PruningError) as error:
        schedule.at_layers(depth)
    assert named in str(error.value)


def test_stages_beyond_the_depth_are_named():
    with pytest.raises(PruningError, match="Layer 24 is beyond this model's 24 layers"):
        Schedule(Stage(8, Grid(2)), Stage(24, Grid(3))).at_layers(24)


@pytest.mark.parametrize("select", [Top(ROPE, 0.5), Grid(3) | Top(NO_ROPE, 0.5), Grid(3) >> Top(ROPE, 0.5)])
def test_layer_0_has_no_layer_before_it_to_score_with(select):
    with pytest.raises(PruningError, match="layer 0"):
        Schedule(Stage(0, select)).at_layers(32)


@pytest.mark.parametrize(
    "select", [Top(LastTokenAttention(layer="K"), 0.5), Top(KNNDensity(), 0.5), Random(0.5), Grid(3), KeepNone()]
)
def test_layer_0_may_score_without_a_layer_before_it(select):
    assert Schedule(Stage(0, select)).at_layers(32) == (0,)


def test_a_range_that_was_closed_cannot_be_stretched_over():
    closed, spread = Stage(3, Grid(2), positions="renumber"), Stage(8, Grid(4), positions="stretch")
    with pytest.raises(PruningError, match="positions='stretch' after positions='renumber'"):
        Schedule(closed, Stage(5, Grid(2)), spread)
    assert len(Schedule(replace(spread, at=2), closed).stages) == 2


def test_a_schedule_is_its_stages():
    first, second = Stage(8, Grid(3)), Stage(16, Grid(5))
    schedule = Schedule(first, second)
    assert list(schedule) == [first, second]
    assert schedule == Schedule(Stage(8, Grid(3)), Stage(16, Grid(5)))
    assert hash(schedule) == hash(Schedule(first, second))
    assert schedule != Schedule(second, first)


def test_tokens_of_fastv():
    schedule = Schedule(Stage(3, Top(ROPE, 0.25)))
    assert schedule.tokens_per_layer(PRISMATIC, 32) == [729] * 3 + [182] * 29
    assert schedule.average_tokens(PRISMATIC, 32) == (3 * 729 + 29 * 182) / 32


def test_tokens_of_pyramiddrop():
    of_original = Schedule(*(Stage(k, Top(ROPE, 0.5**s)) for s, k in enumerate((8, 16, 24), start=1)))
    assert of_original.tokens_per_layer(LLAVA, 32) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    of_current = Schedule(*(Stage(k, Top(ROPE, 0.3, of="current")) for k in (8, 16, 24)))
    assert of_current.tokens_per_layer(PRISMATIC, 32) == [729] * 8 + [218] * 8 + [65] * 8 + [19] * 8
    assert of_current.average_tokens(PRISMATIC, 32) == (729 + 218 + 65 + 19) / 4


def test_tokens_of_feather():
    first, second = Stage(8, Top(NO_ROPE, 0.3) | Grid(3)), Stage(16, Top(NO_ROPE, 0.09, of="current"))
    union = 218 + 81 - 218 * 81 / 729  # 274.8
    expected = [729] * 8 + [union] * 8 + [24] * 16
    assert Schedule(first, second).tokens_per_layer(PRISMATIC, 32) == pytest.approx(expected)
    assert Schedule(first, second).average_tokens(PRISMATIC, 32) == pytest.approx(sum(expected) / 32)


def test_a_fixed_union_costs_its_largest_size():
    schedule = Schedule(Stage(8, Union(Top(NO_ROPE, 0.3), Grid(3), fixed=True)))
    assert schedule.tokens_per_layer(PRISMATIC, 16) == [729] * 8 + [299] * 8


def test_images_are_counted_one_by_one():
    schedule = Schedule(Stage(1, Grid(2)), Stage(2, Top(ROPE, 3)))
    assert schedule.tokens_per_layer([(1, 3, 3), (2, 4, 5)], 3) == [9 + 40, 4 + 12, 3 + 3]


def test_a_text_only_sample_costs_nothing():
    assert Schedule(Stage(1, Grid(2))).average_tokens([], 4) == 0


def test_before_the_model_and_without_stages():
    assert Schedule(Stage(0, KeepNone())).tokens_per_layer(LLAVA, 3) == [0, 0, 0]
    assert Schedule().tokens_per_layer(LLAVA, 3) == [576] * 3


def test_fractions_move_between_depths():
    schedule = Schedule(Stage(0.25, Grid(2)), Stage(0.5, Top(ROPE, 2)))
    assert schedule.at_layers(32) == (8, 16)
    assert schedule.tokens_per_layer([(1, 4, 4)], 12) == [16] * 3 + [4] * 3 + [2] * 6


def test_fastv_at_192_of_576_tokens():
    solved = solve(Cut(), 192, LLAVA, 32)
    kept = int(576 * solved.keep)
    assert solved.keep == pytest.approx(0.2656, abs=0.002)
    assert (3 * 576 + 29 * kept) / 32 == pytest.approx(192, abs=0.5)
    assert solved.schedule().average_tokens(LLAVA, 32) == (3 * 576 + 29 * kept) / 32


@relaxed
@given(st.floats(60, 576), st.sampled_from([(3,), (0.25, 0.5, 0.75), (1, 2)]), st.booleans())
def test_solved_averages_are_within_the_tolerance(average, layers, union):
    method = Cut(layers=layers, union=union)
    low, high = (method.with_budget(keep).schedule().average_tokens(LLAVA, 32) for keep in (1e-6, 1.0))
    if low - 2 <= average <= high:
        solved = solve(method, average, LLAVA, 32, tolerance=2)
        assert abs(solved.schedule().average_tokens(LLAVA, 32) - average) <= 2
    else:
        with pytest.raises(PruningError):
            solve(method, average, LLAVA, 32, tolerance=2)


@pytest.mark.parametrize("average", [10, 54, 577, 1000])
def test_an_average_out_of_reach_is_named(average):
    with pytest.raises(PruningError) as error:
        solve(Cut(), average, LLAVA, 32)
    assert f"An average of {average} visual tokens is out of reach" in str(error.value)
    assert "54.9 to 576.0" in str(error.value)


def test_an_average_between_two_reachable_ones_names_the_nearer():
    # One 2 x 2 image: averages of 1, 2, 3, 4 from the first layer on, so 2.4 is 0.4 away.
    with pytest.raises(PruningError, match=r"closest average to 2.4 visual tokens is 2\.\d"):
        solve(Cut(layers=(1,)), 2.4, [(1, 2, 2)], 32, tolerance=0.1)
