import gc
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from feathervlm import methods
from feathervlm.core import Grid, LastTokenAttention, PruningError, Schedule, Stage, Top
from feathervlm.methods import (
    AveragePool,
    BeforeLLM,
    Combined,
    FastV,
    Feather,
    Method,
    PyramidDrop,
    ShuffledPositions,
    Uniform,
    available,
    get,
)
from feathervlm.methods.base import REGISTRY
from feathervlm.methods.lookup import resolve


@pytest.fixture(autouse=True)
def clean_registry():
    before = dict(REGISTRY)
    yield
    added = REGISTRY.keys() - before.keys()
    REGISTRY.clear()
    REGISTRY.update(before)
    if added:  # a subclass is known to its base until it is collected
        gc.collect()


def make_method(name="mine", paper="none", **attributes):
    def schedule(self):
        return Schedule(Stage(self.layer, Top(LastTokenAttention(), self.keep) | Grid(2)))

    annotations = {"name": ClassVar[str], "paper": ClassVar[str], "layer": int, "keep": float}
    body = {"__annotations__": annotations, "__module__": __name__, "__doc__": "Mine.\n\nMore."}
    defaults = {"name": name, "paper": paper, "layer": 4, "keep": 0.5, "schedule": schedule}
    return dataclass(frozen=True)(type("Mine", (Method,), {**body, **defaults, **attributes}))


def test_a_method_of_ones_own_works_by_name():
    mine = make_method()
    assert "mine" in available()
    assert get("mine") == mine()
    assert get("mine:keep=0.25,layer=2") == mine(layer=2, keep=0.25)
    assert str(mine(keep=0.25)) == "mine:keep=0.25"
    assert mine.summary() == "Mine."
    assert mine().solve(300, [(1, 24, 24)], 32).schedule().average_tokens([(1, 24, 24)], 32) == pytest.approx(
        300, abs=0.5
    )
    assert get("before-llm:method=(mine:keep=0.25)") == BeforeLLM(mine(keep=0.25))


def test_a_method_written_in_a_file_of_its_own_needs_no_more_than_this():
    @dataclass(frozen=True)
    class Corner(Method):
        """Keep one token in n."""

        name: ClassVar[str] = "corner"
        paper: ClassVar[str] = "none"
        budget_parameter: ClassVar[str | None] = None

        stride: int = field(default=8)

        def schedule(self):
            return Schedule(Stage(0.25, Grid(self.stride)))

    assert get("corner:stride=4").schedule().stages[0].select == Grid(4)
    with pytest.raises(PruningError, match="corner has no budget parameter"):
        Corner().solve(100, [(1, 24, 24)], 32)


def test_a_parameter_without_a_default_must_be_given():
    @dataclass(frozen=True)
    class Strict(Method):
        name: ClassVar[str] = "strict"
        paper: ClassVar[str] = "none"

        stride: int

        def schedule(self):
            return Schedule(Stage(1, Grid(self.stride)))

    assert str(get("strict:stride=2")) == "strict:stride=2"
    with pytest.raises(PruningError, match="strict needs the parameter 'stride'"):
        get("strict")


def test_the_same_class_may_be_defined_again():
    first, again = make_method(), make_method(keep=0.75)
    assert first is not again
    assert get("mine") == again()


@pytest.mark.parametrize("name", ["feather", "text-only"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(PruningError, match=f"Two methods are called '{name}'"):
        make_method(name=name)
    assert REGISTRY[name].__module__.startswith("feathervlm.methods.")


def test_a_subclass_needs_a_name_of_its_own():
    with pytest.raises(PruningError, match="Two methods are called 'fastv'"):
        type("Faster", (FastV,), {"__module__": __name__})


@pytest.mark.parametrize("name", ["Mine", "my method", "", "-", "a_b", "a-", "é", "mine!", "mine:keep", "mine,yours"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(TypeError, match="lower-case") as error:
        make_method(name=name)
    assert repr(name) in str(error.value)
    assert name not in REGISTRY


def test_a_method_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Method()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("fether", ["'fether'", "feather"]),
        ("Feather", ["'Feather'", "feather"]),
        ("feather:kep=0.3", ["feather", "'kep'", "layers, keep, stride, fixed"]),
        ("text-only:keep=0.3", ["text-only", "'keep'", "it has none"]),
        ("feather:keep=1.5", ["keep=1.5"]),
        ("feather:keep=196", ["keep=196"]),
        ("feather:layers=8", ["layers=8"]),
        ("feather:layers=8+16+24", ["layers=(8, 16, 24)"]),
        ("feather:stride=0", ["stride=0"]),
        ("fastv:keep=0", ["keep=0"]),
        ("fastv:keep=half", ["keep='half'"]),
        ("fastv:layer=-1", ["=-1"]),
        ("fastv:layer=3.0", ["=3.0"]),
        ("fastv:over=text", ["over='text'"]),
        ("fastv:rope=no", ["rope='no'"]),
        ("knn:count=0.5", ["count=0.5"]),
        ("knn:count=1", ["count=1"]),
        ("knn:count=true", ["count=True"]),
        ("knn:neighbors=0", ["neighbors=0"]),
        ("knn:features=text", ["features='text'"]),
        ("uniform:stride=0", ["stride=0"]),
        ("ensemble:keep=2.5", ["keep=2.5"]),
        ("random:keep=-1", ["keep=-1"]),
        ("pyramiddrop:keep=2", ["keep=2"]),
        ("pyramiddrop:layers=8", ["layers=8"]),
        ("pyramiddrop:layers=[]", ["layers=()"]),
        ("pyramiddrop:form=paper", ["form='paper'"]),
        ("before-llm:method=3", ["method=3"]),
        ("pool:stride=0", ["stride=0"]),
        ("pool:keep=0.5", ["pool", "'keep'", "layer, stride"]),
        ("shuffled-positions:method=3", ["method=3"]),
        ("shuffled-positions:method=fether", ["'fether'"]),
        ("shuffled-positions:method=(uniform:layer=0)", ["uniform:layer=0 has a stage at layer 0"]),
        ("shuffled-positions:seed=-1", ["seed=-1"]),
        ("fastervlm:positions=keep", ["positions='keep'", "preserve, renumber, stretch"]),
        ("before-llm:method=fether", ["'fether'"]),
        ("before-llm:method=(fastv:keep=2.5)", ["keep=2.5"]),
    ],
)
def test_a_bad_request_is_named(spec, named):
    with pytest.raises(PruningError) as error:
        get(spec)
    assert all(part in str(error.value) for part in named)


@pytest.mark.parametrize(
    ("method", "spec"),
    [
        (Feather(), "feather"),
        (Feather(keep=0.4, layers=(8, 16)), "feather:layers=8+16,keep=0.4"),
        (Feather(fixed=True), "feather:fixed=true"),
        (PyramidDrop(layers=(8,)), "pyramiddrop:layers=[8]"),
        (FastV(layer=3, rope=False, over="all"), "fastv:layer=3,rope=false,over=all"),
        (AveragePool(layer=3, stride=3), "pool:layer=3,stride=3"),
        (ShuffledPositions(), "shuffled-positions"),
        (ShuffledPositions(Feather(keep=0.4), seed=2), "shuffled-positions:method=(feather:keep=0.4),seed=2"),
        (BeforeLLM(), "before-llm"),
        (BeforeLLM(FastV(keep=0.5)), "before-llm:method=(fastv:keep=0.5)"),
        (BeforeLLM(BeforeLLM(Uniform())), "before-llm:method=(before-llm:method=(uniform))"),
    ],
)
def test_the_written_form(method, spec):
    assert str(method) == spec
    assert get(spec) == method


def test_parameters_are_checked_when_the_method_is_made():
    with pytest.raises(PruningError, match=r"keep=1\.5"):
        FastV(keep=1.5)


def test_methods_are_values():
    assert {FastV(), FastV(keep=0.25), FastV(keep=0.5)} == {FastV(), FastV(keep=0.5)}
    with pytest.raises(AttributeError):
        FastV().keep = 0.5


def test_with_budget_changes_the_budget_parameter_alone():
    assert FastV(layer=3, rope=False).with_budget(0.5) == FastV(layer=3, rope=False, keep=0.5)


def test_solve_is_a_method_of_the_same_kind():
    solved = FastV(layer=3, rope=False).solve(192, grids=[(1, 24, 24)], depth=32)
    assert (solved.layer, solved.rope) == (3, False)
    assert solved.keep == pytest.approx(0.2656, abs=0.002)
    assert solved.schedule().average_tokens([(1, 24, 24)], 32) == pytest.approx(192, abs=0.5)


@pytest.mark.parametrize("spec", ["uniform", "knn", "text-only", "before-llm", "pool", "shuffled-positions"])
def test_methods_without_a_budget_parameter_say_so(spec):
    with pytest.raises(PruningError, match=f"{spec} has no budget parameter"):
        get(spec).solve(192, grids=[(1, 24, 24)], depth=32)


def test_available_is_sorted_and_complete():
    assert available() == tuple(sorted(available()))
    public = [getattr(methods, name) for name in methods.__all__]
    kinds = {part for part in public if isinstance(part, type)}
    assert set(available()) == {kind.name for kind in kinds - {Method, Combined}}


def test_a_file_is_a_method(tmp_path, monkeypatch):
    path, method = tmp_path / "mine.json", FastV(layer=2, keep=0.5)
    method.schedule().save(path)
    read = get(f" {path} ")
    assert str(read) == str(path)
    assert read.schedule() == method.schedule()
    assert read.fingerprint() == method.schedule().fingerprint()
    assert get(str(read)) == read
    assert "schedule-file" not in available()
    Feather().schedule().save(path)
    assert read.schedule() == method.schedule()  # it has been read already
    monkeypatch.chdir(tmp_path)
    assert get("before-llm:method=(mine.json)").method.schedule() == Feather().schedule()
    with pytest.raises(PruningError, match="cannot be read"):
        get("none.json")


def test_methods_are_resolved_to_a_name_and_a_schedule(tmp_path):
    schedule = FastV(layer=2).schedule()
    schedule.save(tmp_path / "mine.json")
    path = str(tmp_path / "mine.json")
    assert resolve("fastv:layer=2") == resolve(FastV(layer=2)) == ("fastv:layer=2", schedule)
    assert resolve(schedule) == ("schedule", schedule)
    assert resolve(path) == resolve(get(path)) == (path, schedule)
    for wrong in (3, None, Grid(2)):
        with pytest.raises(PruningError, match="neither a spec"):
            resolve(wrong)


def test_fingerprints_tell_parameters_apart():
    methods_ = [FastV(), FastV(keep=0.5), FastV(layer=3), Feather(), BeforeLLM(), BeforeLLM(FastV(keep=0.5))]
    prints = {method.fingerprint() for method in methods_}
    assert len(prints) == len(methods_)
    assert get("fastv").fingerprint() == FastV(layer=3 / 32, keep=0.25).fingerprint()
