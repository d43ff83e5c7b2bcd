"""`feathervlm eval`: the table, one JSON document, two processes, and one sentence for what does not fit."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from feathervlm.cli.main import app
from feathervlm.core.spec import split_specs


def cli(*arguments: object, **environment: str | None) -> Result:
    return CliRunner(env={"COLUMNS": "160", **environment}).invoke(app, ["eval", *map(str, arguments)])


def sentence(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


@pytest.fixture
def some(tiny: Path, data: Path, tmp_path: Path) -> list[object]:
    return ["--model", tiny, "--data", data, "--tasks", "vsr,tallyqa", "--out", tmp_path / "out"]


def test_the_table_and_the_paper_beside(some: list[object], tmp_path: Path) -> None:
    told = cli(*some, "--methods", "fastv:layer=1,feather", "--compare-paper")
    assert told.exit_code == 0, told.output
    for words in ("VSR (4)", "fastv:layer=1", "TallyQA, complex", "FEATHER, 64 % saved", "This is not the paper's"):
        assert words in told.stdout, told.stdout
    document = json.loads((tmp_path / "out/results.json").read_text(), parse_constant=pytest.fail)
    assert [(row["task"], row["method"]) for row in document["rows"]][:3] == [
        ("vsr", "unpruned"), ("vsr", "fastv:layer=1"), ("vsr", "feather"),
    ]  # fmt: skip
    assert document["paper"]["rows"][0]["paper"] == 63.3
    again = cli(*some, "--methods", "fastv:layer=1,feather", "--compare-paper", "--json")
    assert json.loads(again.stdout)["rows"] == document["rows"]


def test_the_data_directory_comes_from_the_environment(some: list[object], data: Path) -> None:
    arguments = [part for part in some if part not in ("--data", data)]
    assert cli(*arguments, "--methods", "none", FEATHERVLM_DATA=str(data)).exit_code == 0
    assert "data/vsr/test.jsonl" in sentence(cli(*arguments, "--methods", "none", FEATHERVLM_DATA=None))


def test_two_processes_as_a_launcher_starts_them(some: list[object], tmp_path: Path) -> None:
    told = [cli(*some, "--methods", "none", RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2") for rank in "01"]
    assert [one.exit_code for one in told] == [0, 0], [one.output for one in told]
    assert told[0].stdout == ""
    assert re.fullmatch(r"process 0 is done; \d answers of others are missing\n", told[0].stderr)
    assert "VSR (4)" in told[1].stdout
    assert len(list((tmp_path / "out/samples/vsr").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "nope"), "'nope'"),
        (("--tasks", "vsr,nope"), "'nope'"),
        (("--tasks", ","), "No task"),
        (("--protocol", "mine"), "'mine'"),
        (("--model", "nowhere"), "nowhere"),
        (("--device", "toaster"), "toaster"),
    ],
)
def test_what_does_not_fit_is_one_sentence(some: list[object], arguments: tuple[object, ...], said: str) -> None:
    assert said in sentence(cli(*some, *arguments))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", ("none",)),
        (" none , fastv ,", ("none", "fastv")),
        ("fastv:layer=3,keep=0.5,feather", ("fastv:layer=3,keep=0.5", "feather")),
        ("feather:layers=8+16, keep = 0.2,before-llm:method=(fastv:layer=3,keep=0.5),knn",
         ("feather:layers=8+16, keep = 0.2", "before-llm:method=(fastv:layer=3,keep=0.5)", "knn")),
        ("", ()),
    ],
)  # fmt: skip
def test_a_list_of_methods(text: str, expected: tuple[str, ...]) -> None:
    assert split_specs(text) == expected
