"""The controls of a method: one for every parameter, of the right kind, and what they write is a spec."""

from dataclasses import fields

import pytest

from feathervlm import PruningError, Schedule
from feathervlm.app.controls import NONE, changed, controls
from feathervlm.methods import available, get
from user_methods import EXAMPLE, unchanged_registry

OTHERS = {
    "feather": {"layers": "4+9", "keep": 0.5, "stride": "2", "fixed": True},
    "fastv": {"layer": "2", "keep": 0.1, "rope": False, "over": "all"},
    "sparsevlm": {"keep": 0.5, "positions": "renumber"},
    "before-llm": {"method": "feather:keep=0.2"},
    "shuffled-positions": {"method": "(feather:keep=0.2,stride=2)", "seed": "3"},
}


@pytest.mark.parametrize("name", available())
def test_every_parameter_has_a_control(name):
    found = controls(name)
    assert [one.name for one in found] == [field.name for field in fields(get(name))]
    for one in found:
        assert one.about, f"the docstring of {name} says nothing about {one.name}"
        assert one.kind != "choice" or one.value in one.choices
        assert changed(name, one.name, one.value) == name, "a control that is not touched changes nothing"


@pytest.mark.parametrize(("name", "values"), OTHERS.items())
def test_what_controls_write_is_read_again(name, values):
    spec = name
    for parameter, value in values.items():
        spec = changed(spec, parameter, value)
        assert str(get(spec)) == spec
    shown = {one.name: one.value for one in controls(spec)}
    for parameter, value in values.items():
        assert shown[parameter] in (value, f"({value})")
    for parameter in values:
        spec = changed(spec, parameter, NONE if shown[parameter] == "renumber" else "")
    assert spec == name, "an empty control is the default"


def test_kinds_follow_the_types():
    kinds = {one.name: one.kind for one in controls("fastv")}
    assert kinds == {"layer": "text", "keep": "slider", "rope": "switch", "over": "choice"}
    assert {one.name: one.kind for one in controls("fastv:keep=20")}["keep"] == "text", "a number of tokens"
    assert {one.name: one.choices for one in controls("sparsevlm")}["positions"] == ("none", "preserve", "renumber")


@pytest.mark.parametrize(
    ("name", "parameter", "value", "words"),
    [
        ("feather", "keep", "2", "keep"),
        ("feather", "layers", "9+4", "deeper"),
        ("fastv", "layer", "many", "'many' is neither a layer"),
        ("before-llm", "method", "nothing", "no method 'nothing'"),
        ("feather", "stride", "1,keep=0.1", "stride='1,keep=0.1' is more than one value"),
    ],
)
def test_wrong_values_are_one_sentence(name, parameter, value, words):
    with pytest.raises(PruningError, match=words):
        get(changed(name, parameter, value)).schedule().at_layers(16)


def test_a_schedule_in_a_file_has_no_controls(tmp_path):
    get("feather").schedule().save(tmp_path / "mine.json")
    assert controls(str(tmp_path / "mine.json")) == []
    assert isinstance(Schedule.load(tmp_path / "mine.json"), Schedule)


def test_a_method_of_the_user_has_controls(tmp_path):
    (tmp_path / "mine.py").write_text(EXAMPLE)
    with unchanged_registry():
        from feathervlm.methods.base import load

        load(tmp_path / "mine.py")
        assert controls("with-column")


def test_joined_methods_have_the_controls_of_each():
    spec = "tome:keep=0.6+feather:layers=4+9"
    shown = {control.name: control.value for control in controls(spec)}
    assert shown["1.keep"] == 0.6
    assert shown["2.layers"] == "4+9"
    assert changed(spec, "1.keep", 0.3) == "tome:keep=0.3+feather:layers=4+9"
    assert changed(spec, "2.layers", "4+8") == "tome:keep=0.6+feather:layers=4+8"
    with pytest.raises(PruningError, match="keep"):
        changed(spec, "2.keep", 3.5)
