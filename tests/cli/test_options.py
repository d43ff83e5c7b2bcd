"""The options that commands share."""

from pathlib import Path

import pytest

from command_line import cli, document, sentence
from feathervlm.cli.options import read_method, read_methods
from feathervlm.core.errors import PruningError
from feathervlm.core.spec import split_specs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fastv", ("fastv",)),
        ("fastv, feather", ("fastv", "feather")),
        ("fastv:layer=3,keep=0.2,random", ("fastv:layer=3,keep=0.2", "random")),
        ("before-llm:method=(fastv:layer=3,keep=0.2),random", ("before-llm:method=(fastv:layer=3,keep=0.2)", "random")),
    ],
)
def test_a_list_of_specs_keeps_their_own_commas(text, expected):
    assert split_specs(text) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, ("unpruned", "fastv")),
        (["feather"], ("feather",)),
        (["fastv,feather:keep=0.3,stride=3", "random"], ("fastv", "feather:keep=0.3,stride=3", "random")),
        (["none", "unpruned,none"], ("unpruned",) * 3),
    ],
)
def test_methods_may_be_repeated_and_joined(values, expected):
    assert read_methods(values, ("unpruned", "fastv")) == expected


@pytest.mark.parametrize(("value", "words"), [("fastv,nope", "'nope'"), ("fastv:layer=2,colour=3", "'colour'")])
def test_every_method_is_checked(value, words):
    with pytest.raises(PruningError, match=words):
        read_methods(["feather", value])


def test_a_command_with_one_method_refuses_several():
    assert read_method(None, "feather", "run") == "feather"
    with pytest.raises(PruningError, match=r"`run` takes one --method, not 2 \(fastv, random\)"):
        read_method(["fastv", "random"], "feather", "run")


def test_both_spellings_of_an_option_are_the_same(tmp_path):
    for words in (("--method", "nope"), ("--methods", "nope"), ("--method", "fastv", "--methods", "random,nope")):
        assert "'nope'" in sentence(cli("eval", *words, "--out", tmp_path))
    for option in ("--attn-implementation", "--attn"):
        assert "'telepathy'" in sentence(cli("study", option, "telepathy", "--n", 2, "--quick", "--out", tmp_path))


def test_a_method_of_a_file_works_in_a_command(column: Path, tmp_path: Path) -> None:
    found = document(
        cli("diagnose", "--load", column, "--method", "with-column", "--limit", 2, "--out", tmp_path, "--json")
    )
    assert found["about"]["method"] == "with-column"
