import json
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feathervlm.core import (
    Criterion,
    Given,
    Grid,
    LastTokenAttention,
    Pool,
    PruningError,
    Schedule,
    Selector,
    Stage,
    Top,
)
from feathervlm.core.scoring_pass import Survivors, SurvivorsOf
from feathervlm.core.spec import VERSION, build, from_json, parse, split_specs, to_json, write_value
from method_cases import ROWS

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LAYERS = st.integers(0, 80) | st.floats(0, 1, exclude_max=True)
NUMBERS = st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9)
VALUES = (
    NUMBERS | st.booleans() | st.lists(NUMBERS, min_size=1, max_size=4).map(tuple) | st.sampled_from(["all", "K-1"])
)


@pytest.mark.parametrize(
    ("spec", "name", "parameters"),
    [
        ("feather", "feather", {}),
        (" feather ", "feather", {}),
        ("feather:keep=0.3,layers=8+16", "feather", {"keep": 0.3, "layers": (8, 16)}),
        ("feather: keep = 0.3 , stride = 3", "feather", {"keep": 0.3, "stride": 3}),
        ("feather:layers=[8,16]", "feather", {"layers": (8, 16)}),
        ("feather:layers=(8, 16),keep=1", "feather", {"layers": (8, 16), "keep": 1}),
        ("feather:layers=0.25+0.5", "feather", {"layers": (0.25, 0.5)}),
        ("pyramiddrop:layers=[8]", "pyramiddrop", {"layers": (8,)}),
        ("fastv:rope=true", "fastv", {"rope": True}),
        ("fastv:rope=False,over=all", "fastv", {"rope": False, "over": "all"}),
        ("fastv:over='all'", "fastv", {"over": "all"}),
        ("fastv:keep=1e-3", "fastv", {"keep": 0.001}),
        ("fastv:layer=-3", "fastv", {"layer": -3}),
        ("text-only", "text-only", {}),
        ("x:method=(fastv)", "x", {"method": "fastv"}),
        ("x:method=(fastv:keep=0.25,layer=3),a=1", "x", {"method": "fastv:keep=0.25,layer=3", "a": 1}),
        ("x:method=(y:method=(fastv:keep=0.25))", "x", {"method": "y:method=(fastv:keep=0.25)"}),
    ],
)
def test_parse(spec, name, parameters):
    found_name, found = parse(spec)
    assert (found_name, found) == (name, parameters)
    assert {key: type(value) for key, value in found.items()} == {key: type(v) for key, v in parameters.items()}


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("", "''"),
        ("  ", "'  '"),
        (":keep=0.3", "':keep=0.3'"),
        ("feather:", "'feather:'"),
        ("feather: ", "'feather: '"),
        ("feather:keep", "'keep'"),
        ("feather:keep=", "'keep='"),
        ("feather:=0.3", "'=0.3'"),
        ("feather:keep=0.3,", "''"),
        ("feather:a b=3", "'a b=3'"),
        ("feather:keep=0.3,keep=0.4", "'keep' twice"),
        ("feather:layers=[8,16", "'feather:layers=[8,16'"),
        ("feather:layers=8,16]", "'feather:layers=8,16]'"),
        ("x:method=(fastv:layer=3", "'x:method=(fastv:layer=3'"),
        ("x:method=)fastv(", "'x:method=)fastv('"),
    ],
)
def test_a_malformed_spec_is_named(spec, named):
    with pytest.raises(PruningError) as error:
        parse(spec)
    assert named in str(error.value)
    assert repr(spec) in str(error.value)


@given(st.dictionaries(st.sampled_from(["keep", "layers", "over", "x1"]), VALUES, min_size=1))
def test_written_values_are_read_back(parameters):
    spec = "name:" + ",".join(f"{key}={write_value(value)}" for key, value in parameters.items())
    assert parse(spec) == ("name", parameters)
    assert list(map(type, parse(spec)[1].values())) == list(map(type, parameters.values()))


@dataclass(frozen=True)
class Needy:
    keep: float
    stride: int = 3


@dataclass(frozen=True)
class Bare:
    pass


def test_build_fills_in_defaults():
    assert build(Needy, {"keep": 0.5}, "needy") == Needy(0.5, 3)


@pytest.mark.parametrize(
    ("cls", "parameters", "named"),
    [
        (Needy, {"keep": 1, "kep": 2}, ["needy", "'kep'", "keep, stride"]),
        (Needy, {"stride": 2}, ["needy", "'keep'"]),
        (Bare, {"keep": 1}, ["needy", "'keep'", "it has none"]),
    ],
)
def test_build_names_what_it_does_not_understand(cls, parameters, named):
    with pytest.raises(PruningError) as error:
        build(cls, parameters, "needy")
    assert all(part in str(error.value) for part in named)


def schedules(selectors):
    def stages(select):
        positions = st.sampled_from(["preserve", "renumber", "shuffle"])
        merge = st.none() | st.builds(Pool, st.integers(1, 9) | st.tuples(*[st.integers(1, 9)] * 3))
        stage = st.builds(Stage, LAYERS, select, positions=positions, merge=merge, seed=st.integers(0, 9))
        return st.lists(stage, max_size=3).map(lambda found: Schedule(*found))

    nested = st.recursive(selectors, lambda inner: stages(inner).map(lambda found: SurvivorsOf(Survivors(found))))
    return stages(nested)


@relaxed
@given(st.data())
def test_any_schedule_survives_json(selectors, data):
    schedule = data.draw(schedules(selectors))
    text = to_json(schedule)
    assert json.loads(text)["feathervlm"] == VERSION
    assert from_json(text) == schedule
    assert to_json(from_json(text)) == text


# The written form is a promise to files that exist already; a change of it needs a new version.
FEATHER_1 = """{"feathervlm": 1, "stages": [
  {"type": "Stage", "at": 8, "positions": "preserve", "select": {"type": "Union", "fixed": false,
    "a": {"type": "Top", "keep": 0.3, "of": "original",
      "criterion": {"type": "LastTokenAttention", "rope": false, "over": "visual", "layer": "K-1"}},
    "b": {"type": "Grid", "stride": 3}}},
  {"type": "Stage", "at": 16, "select": {"type": "Top", "keep": 0.09, "of": "current",
    "criterion": {"type": "LastTokenAttention", "rope": false}}}
]}"""


def test_version_1_stays_readable():
    no_rope = LastTokenAttention(rope=False)
    first, second = Stage(8, Top(no_rope, 0.3) | Grid(3)), Stage(16, Top(no_rope, 0.09, of="current"))
    assert from_json(FEATHER_1) == Schedule(first, second)


def test_an_empty_schedule_survives_json():
    assert from_json(to_json(Schedule())) == Schedule()


def test_classes_made_elsewhere_are_covered():
    @dataclass(frozen=True)
    class Brightness(Criterion):
        power: float = 2.0

        def score(self, tokens):
            return torch.zeros(tokens.present.shape)

    @dataclass(frozen=True)
    class Anything(Selector):
        why: str = "because"

        def select(self, tokens):
            return tokens.present

        def expected(self, image):
            return image.current

    schedule = Schedule(Stage(2, Anything("we can") | Top(Brightness(3.0), 0.5)))
    assert from_json(to_json(schedule)) == schedule


def stage(select):
    return json.dumps({"feathervlm": 1, "stages": [{"type": "Stage", "at": 3, "select": select}]})


ATTENTION = {"type": "LastTokenAttention"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ["not JSON"]),
        ("feather:keep=0.3", ["not JSON", "line 1 column 1"]),
        ('{"feathervlm": 1, "stages": [', ["not JSON"]),
        ("[]", ["version 1", "None"]),
        ("3", ["version 1", "None"]),
        ('{"stages": []}', ["version 1", "None"]),
        ('{"feathervlm": 2, "stages": []}', ["version 1", "is 2"]),
        ('{"feathervlm": "1", "stages": []}', ["version 1", "'1'"]),
        ('{"feathervlm": 1, "type": "Grid", "stride": 3}', ['"stages"']),
        ('{"feathervlm": 1, "stages": [3]}', ["3 is not a Stage"]),
        ('{"feathervlm": 1, "stages": [{"type": "Step"}]}', ["'Step'", "Stage"]),
        ('{"feathervlm": 1, "stages": [{"at": 3}]}', ["Unknown type None", "Stage"]),
        (stage({"type": "Gird", "stride": 3}), ["'Gird'", "Grid"]),
        (stage({"type": "Selector"}), ["'Selector'"]),
        (stage({"type": "Given", "kept": [1]}), ["'Given'"]),
        (stage({"type": "Grid"}), ["Grid", "'stride'"]),
        (stage({"type": "Grid", "stride": 0}), ["stride=0"]),
        (stage({"type": "Grid", "stride": 3, "offset": 1}), ["Grid", "'offset'", "stride"]),
        (stage({"type": "KeepNone", "keep": 1}), ["KeepNone", "'keep'", "it has none"]),
        (stage({"type": "Top", "criterion": ATTENTION, "keep": 1.5}), ["keep=1.5"]),
        (stage({"type": "Top", "criterion": {"type": "Grid", "stride": 3}, "keep": 0.5}), ["Grid(stride=3)"]),
        (stage({"type": "Top", "criterion": {**ATTENTION, "over": "text"}, "keep": 0.5}), ["over='text'"]),
        (stage(ATTENTION), ["LastTokenAttention"]),
        (stage(None), ["None"]),
        (stage({"type": "Merger"}), ["'Merger'"]),
        (stage({"type": "Pool", "stride": 2}), ["Pool(stride=2)"]),
    ],
)
def test_a_bad_document_is_named(text, named):
    with pytest.raises(PruningError) as error:
        from_json(text)
    assert all(part in str(error.value) for part in named)


@pytest.mark.parametrize("wrap", [lambda given: given, lambda given: given | Grid(3)])
def test_tokens_given_for_one_input_are_not_written(wrap):
    with pytest.raises(PruningError, match="belong to one input"):
        to_json(Schedule(Stage(3, wrap(Given(torch.ones(1, 4, dtype=torch.bool))))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("none", ("none",)),
        (" none , fastv ,", ("none", "fastv")),
        ("feather:layers=[8,16],keep=0.3,knn", ("feather:layers=[8,16],keep=0.3", "knn")),
        ("mine.json,fastv:keep=0.5", ("mine.json", "fastv:keep=0.5")),
        ("x:method=(y:a=1,b=2),c=3,z", ("x:method=(y:a=1,b=2),c=3", "z")),
    ],
)
def test_a_list_of_specs_keeps_their_own_commas(text, expected):
    assert split_specs(text) == expected


def test_a_list_of_specs_needs_matching_brackets():
    with pytest.raises(PruningError, match="brackets"):
        split_specs("x:method=(fastv,feather")


@pytest.mark.parametrize("name", ROWS)
def test_every_method_is_written_and_read_back(name, tmp_path):
    schedule = ROWS[name].method.schedule()
    assert from_json(to_json(schedule)) == schedule
    schedule.save(tmp_path / "method.json")
    assert Schedule.load(tmp_path / "method.json") == schedule
    assert Schedule.load(str(tmp_path / "method.json")).fingerprint() == schedule.fingerprint()


def test_fingerprints_tell_schedules_apart():
    prints = {name: ROWS[name].method.schedule().fingerprint() for name in ROWS}
    assert len(set(prints.values())) == len({row.method.schedule() for row in ROWS.values()})
    # The same on every machine and in every release that reads the same files.
    assert Schedule(Stage(8, Grid(3))).fingerprint() == (
        "42265f98b5296a610ae8b596e148d39af52bd0fdb9de4768a24e2f20e49bde52"
    )


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("missing.json", None, ["missing.json cannot be read", "No such file"]),
        ("method.txt", "{}", ["method.txt", ".json"]),
        ("broken.json", "{", ["broken.json", "not JSON"]),
        ("other.json", '{"model_type": "llava"}', ["other.json", "not a feathervlm schedule", "None"]),
        ("newer.json", '{"feathervlm": 99, "stages": []}', ["newer.json", "is 99"]),
        ("binary.json", b"\xff\xfe\x00", ["binary.json", "not a text file"]),
    ],
)
def test_a_file_that_holds_no_schedule_is_named(name, text, named, tmp_path):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PruningError) as error:
        Schedule.load(path)
    assert all(part in str(error.value) for part in named)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    for path, named in ((tmp_path / "no" / "a.json", "cannot be written"), (tmp_path / "a.yaml", ".json")):
        with pytest.raises(PruningError, match=named):
            Schedule(Stage(8, Grid(3))).save(path)
    with pytest.raises(PruningError, match="one input"):
        Schedule(Stage(8, Given(torch.ones(1, 1, dtype=torch.bool)))).save(tmp_path / "given.json")
    assert list(tmp_path.iterdir()) == []
