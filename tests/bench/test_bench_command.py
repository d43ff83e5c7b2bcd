"""`feathervlm bench`: tables and JSON, files written whole, and one sentence for every bad request."""

import json
import re

import pytest
from typer.testing import CliRunner

from feathervlm.bench import memory_check
from feathervlm.cli.main import app

SMALL = ("--config", "mini", "--quick", "--methods", "fastv:layer=1,keep=0.5,random:layer=1")


def cli(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_help_has_examples():
    result = cli("--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert "feathervlm bench --config tiny" in result.stdout


def test_words_tell_every_figure():
    result = cli(*SMALL, "--tokens", "49,64")
    assert result.exit_code == 0, result.output
    for words in (
        "64 visual and 59 text tokens, batch 1, 4 layers", "vision encoder", "selection", "prefill", "ideal by FLOPs",
        "gap to it", "time to first token", "each further token", "KV cache", "peak beside weights", "MiB",
        "fastv:layer=1,keep=0.5, 64 tokens, batch 1, 4 layers: ",
        "random:layer=1, batch 1, 4 layers: prefill no slower",
    ):  # fmt: skip
        assert words in result.stdout
    assert "only 49 of 108 tokens are visual" in result.stdout


@pytest.mark.full
def test_json_is_one_document_and_out_the_same(tmp_path):
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    result = cli(*SMALL, "--json", "--batch", "1,2", "--ragged", "--out", out, "--plot", plot)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads(out.read_text())
    assert [row["method"] for row in found["rows"][:3]] == ["unpruned", "fastv:layer=1,keep=0.5", "random:layer=1"]
    assert found["settings"]["ragged"] is True
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "plot.png"]


@pytest.mark.full
def test_an_old_result_survives_a_failure(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    out.write_text("old")
    monkeypatch.setattr("os.getpid", lambda: "here")
    (tmp_path / ".out.here.json").mkdir()  # the draft cannot be written
    with pytest.raises(OSError, match="out"):
        CliRunner().invoke(app, ["bench", *SMALL, "--out", str(out)], catch_exceptions=False)
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nope"], "no config 'nope'"),
        (["--config", "mini", "--methods", "fastv,nope"], "no method 'nope'"),
        (["--config", "mini", "--tokens", "65"], "65 visual tokens are neither a square grid"),
        (["--config", "mini", "--tokens", "64,x"], "--tokens 64,x: 'x' is not a positive integer"),
        (["--config", "mini", "--batch", "0"], "--batch 0: '0'"),
        (["--config", "mini", "--depth", ""], "--depth"),
        (["--config", "mini", "--model", "x"], "two models"),
        (["--config", "mini", "--device", "cuda:7"], "no device 'cuda:7'"),
        (["--config", "mini", "--dtype", "int8"], "no dtype 'int8'"),
        (["--config", "mini", "--attn", "nope"], "Attention 'nope'"),
        (["--config", "mini-qwen", "--methods", "pyramiddrop"], "renumber"),
        (["--config", "mini", "--out", "none/out.json"], "no directory none"),
        (["--model", "none"], "no model directory 'none'"),
    ],
)
def test_bad_requests_are_one_sentence(arguments, words):
    result = cli(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert words in result.stderr


def test_what_does_not_fit_is_refused_with_numbers(monkeypatch):
    monkeypatch.setattr(memory_check, "free", lambda device: 8 * memory_check.GIB)
    result = cli("--config", "llava-1.5-7b", "--methods", "random")
    assert result.exit_code == 2
    assert "26.3 weights" in result.stderr
    assert "8.0 GiB are free on cpu; choose" in result.stderr
