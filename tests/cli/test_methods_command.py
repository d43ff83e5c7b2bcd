"""`feathervlm methods`: what it shows of a method, and methods of a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import cli, document, sentence
from feathervlm import methods
from feathervlm.cli.methods import DESCRIBED


def test_methods_lists_every_method() -> None:
    result = cli("methods")
    assert result.exit_code == 0
    for name in methods.available():
        assert name in result.stdout
    assert "1/4, 1/2" in result.stdout


def test_methods_as_json() -> None:
    found = document(cli("methods", "--json"))["methods"]
    assert [method["name"] for method in found] == list(methods.available())
    assert all(method["summary"] and method["paper"] and method["stages"] for method in found)


@pytest.mark.parametrize("name", methods.available())
def test_one_method_in_words_and_as_json(name: str) -> None:
    words, found = cli("methods", name), document(cli("methods", name, "--json"))
    assert words.exit_code == 0
    for parameter in found["parameters"]:
        assert f"{parameter['name']}: {parameter['type']}, default {parameter['default']}" in words.stdout
    for example in found["examples"]:
        assert example in words.stdout
        assert str(methods.get(example)) == example


def test_joined_methods_are_described_as_one() -> None:
    words = cli("methods", "tome:keep=0.6+feather:layers=8+16").stdout
    assert "methods: list of method\n" in words
    for stage in ("at 0 (layer 0): about 345 of 576", "at 16 (layer 16): about 17 of 576", "345 the last"):
        assert stage in words


def test_what_a_method_needs_is_derived() -> None:
    def known(spec: str) -> Any:
        return document(cli("methods", spec, "--json"))

    assert "without RoPE" in known("feather")["needs"][0]
    assert "with RoPE" in known("fastv")["needs"][0]
    assert "vision encoder" in known("knn")["needs"][0]
    assert "projected" in known("knn:features=projected")["needs"][0]
    assert "pass of its own" in known("before-llm")["needs"][0]
    assert known("uniform")["needs"] == ["nothing but the grid"]
    assert [known(spec)["needs_text"] for spec in ("fastv", "before-llm", "knn", "random")] == [
        True,
        True,
        False,
        False,
    ]
    assert [known(spec)["count_known"] for spec in ("fastv", "feather", "feather:fixed=true")] == [
        True,
        False,
        True,
    ]
    assert [stage["tokens_of_576"] for stage in known("pyramiddrop")["stages"]] == [288, 144, 72]


def test_methods_refuses_an_unknown_name() -> None:
    assert "'nope'" in sentence(cli("methods", "nope"))


def test_a_spec_is_described_as_the_file_describes_the_default() -> None:
    shipped = {method["name"]: method for method in json.loads(DESCRIBED.read_text())["methods"]}
    assert document(cli("methods", "fastv:keep=0.25", "--json")) == shipped["fastv"]
    assert document(cli("methods", "fastv:keep=0.5", "--json")) != shipped["fastv"]


def test_methods_of_a_file_are_shown(column: Path) -> None:
    listed = document(cli("methods", "--load", column, "--json"))["methods"]
    assert "with-column" in [method["name"] for method in listed]
    shown = cli("methods", "with-column:keep=0.1", "--load", column)
    assert shown.stdout.startswith("with-column  (an example)")
    assert "'with-colum'" in sentence(cli("methods", "with-colum", "--load", column))
