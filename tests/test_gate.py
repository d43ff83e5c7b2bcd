"""The combinations that the gate runs: every method, model, family and attention implementation is among them."""

import pytest

import method_cases
from family_cases import FAMILY_CASES, WAYS, with_attention, with_some
from method_cases import METHODS, crossed, pairs, representatives, usage

SUBJECTS, KINDS = ("a", "b", "c", "d", "e", "f"), ("sdpa", "eager")


@pytest.fixture(autouse=True)
def everything(monkeypatch):
    """Return the combinations of `make test-full`, too."""
    monkeypatch.setattr(method_cases, "GATE_ONLY", False)


def gate(cases):
    return [case.values for case in cases if not case.marks]


def test_every_method_runs_on_one_model_and_representatives_on_others():
    cases = pairs(METHODS, SUBJECTS, KINDS)
    assert len(cases) == len(METHODS) * len(SUBJECTS) * len(KINDS)
    runs = gate(cases)
    assert {method for *place, method in runs if place == ["a", "sdpa"]} == set(METHODS)
    for method in representatives():
        own = [run for run in runs if run[-1] == method]
        assert len({subject for subject, *_ in own}) >= 2
    assert {run[:2] for run in runs} == {(subject, kind) for subject in SUBJECTS for kind in KINDS}
    assert all(len({method for subject, _, method in runs if subject == one}) >= 7 for one in SUBJECTS)
    assert {run[0] for run in gate(pairs(METHODS, SUBJECTS))} == set(SUBJECTS)


def test_every_use_of_the_engine_has_one_representative():
    uses = [usage(METHODS[name].schedule()) for name in representatives()]
    assert len(set(uses)) == len(uses)
    assert set(uses) == {usage(method.schedule()) for method in METHODS.values()}


@pytest.mark.parametrize("ways", [WAYS, WAYS[:5], ("feather", "random"), ("x", "y", "z", "w")])
def test_every_family_meets_one_way_and_every_way_every_attention(ways):
    cases = with_attention(ways)
    assert len(cases) == len(ways) * sum(len(case.attention) for case in FAMILY_CASES.values())
    assert {name for name, *_ in gate(cases)} == set(FAMILY_CASES)
    assert {run[1:] for run in gate(cases)} == {(kind, way) for kind in KINDS for way in ways}


def test_every_family_runs_some_of_the_values():
    runs = gate(with_some(METHODS, representatives(), 5))
    assert {name for name, _ in runs} == set(FAMILY_CASES)
    assert {value for name, value in runs if name == next(iter(FAMILY_CASES))} == set(METHODS)
    assert {value for name, value in runs if name != next(iter(FAMILY_CASES))} == set(representatives())


def test_every_value_of_a_product_is_in_the_gate():
    runs = gate(crossed("ab", "cde", range(4), share=4))
    assert [set(values) for values in zip(*runs, strict=True)] == [set("ab"), set("cde"), set(range(4))]
