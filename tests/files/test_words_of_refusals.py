"""What a refused command says: one sentence with a remedy that helps, whatever is wrong with its options."""

import json
import os

import odd_pictures
import pytest
from PIL import Image

from command_line import cli, sentence
from feathervlm.utils.schema import short


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["run", "--bogus"], "No such option: --bogus; see feathervlm run --help"),
        (["run", "--max-new-tokens", "many"], "'--max-new-tokens'"),
        (["run", "--max-new-tokens", "0"], "'--max-new-tokens'"),
        (["run", "--model"], "--model"),
        (["eval", "--limit", "1.5"], "'--limit'"),
        (["bench", "--rounds", "-1"], "'--rounds'"),
        (["demo", "extra"], "extra"),
        (["convert-prismatic"], "CHECKPOINT_DIR"),
        (["nonsense"], "No such command 'nonsense'; see feathervlm --help"),
        (["--bogus"], "No such option: --bogus; see feathervlm --help"),
        (["bench", "--tokens", "a"], "'a' is not a positive integer"),
        (["run", "--method", "fastv,feather", "--image", "a", "--prompt", "b"], "takes one --method, not 2"),
        (["eval", "--tasks", ""], "No task is named"),
        (["run", "--method", "x" * 400], "There is no method"),
        (["eval", "--method", ",".join(["fastv:layer=3,keep=0.25"] * 20 + ["magic"])], "There is no method 'magic'"),
        (["run", "--image", "a.png", "--prompt", "b", "--method", "y" * 300 + ".json"], "File name too long"),
        (["study", "--data", "z" * 400], "There is no task"),
    ],
)
def test_wrong_options_are_one_sentence(line, said):
    assert said in sentence(cli(*line))


def test_help_is_still_a_page():
    for line in (["--help"], ["run", "--help"]):
        done = cli(*line)
        assert done.exit_code == 0
        assert "Usage:" in done.stdout
    assert "Usage:" in cli().output, "nothing was asked for"


def test_a_remedy_fits_what_is_wrong(tmp_path):
    png = odd_pictures.save(Image.fromarray(odd_pictures.PIXELS), "PNG")
    for name, content, said in (
        ("cut.png", png[:60], "it is a damaged PNG file"),
        ("page.png", b"<html>", "its format is not known); save it as PNG, JPEG, WebP or TIFF"),
        ("photo.heic", b"\0\0\0\x18ftypheic" + bytes(20), "such as HEIC); save it as PNG, JPEG"),
        ("text.png", dict(odd_pictures.damaged())["big-text.png"], "save it without its metadata"),
    ):
        (tmp_path / name).write_bytes(content)
        found = sentence(cli("run", "--image", tmp_path / name, "--prompt", "x"))
        assert said in found
        assert "give a PNG or JPEG file" not in found


def test_no_method_is_no_method_however_it_is_written(monkeypatch):
    requests = []
    monkeypatch.setattr("feathervlm.bench.run_bench.run", lambda request, say: requests.append(request) or {})
    for none in ("none", "unpruned", "", "none,none"):
        assert cli("bench", "--config", "tiny", "--methods", none, "--json").exit_code == 0
    assert {request.methods for request in requests} == {()}
    assert len(requests) == 4


@pytest.mark.parametrize("content", ["", "[" * 30000, "\ufeff", "{", "[1]", "null"])
def test_files_of_methods_and_findings_that_are_broken(content, tmp_path, monkeypatch):
    monkeypatch.setattr("feathervlm.study.report._by_id", lambda document: document["findings"])
    path = tmp_path / "mine.json"
    path.write_text(content)
    said = sentence(cli("run", "--image", "a.png", "--prompt", "x", "--method", path))
    assert str(path) in said
    (tmp_path / "findings.json").write_text(content)
    lines = tmp_path / "mine.jsonl"
    (tmp_path / "a.png").write_bytes(odd_pictures.save(Image.fromarray(odd_pictures.PIXELS), "PNG"))
    lines.write_text(json.dumps({"image": "a.png", "prompt": "what is the background ?", "answer": "red"}))
    said = sentence(cli("study", "--data", lines, "--beside", tmp_path, "--out", tmp_path / "out"))
    assert "findings.json" in said


def test_pipes_in_place_of_files_are_refused_and_not_waited_for(tmp_path):
    for name in ("mine.jsonl", "mine.json", "mine.py"):
        os.mkfifo(tmp_path / name)
    for line in (
        ["eval", "--tasks", tmp_path / "mine.jsonl"],
        ["study", "--data", tmp_path / "mine.jsonl"],
        ["run", "--image", "a.png", "--prompt", "x", "--method", tmp_path / "mine.json"],
        ["run", "--image", "a.png", "--prompt", "x", "--load", tmp_path / "mine.py"],
    ):
        assert str(tmp_path) in sentence(cli(*line))


def test_errors_that_are_bugs_keep_their_traceback(monkeypatch):
    def fail(*_, **__):
        raise OSError(5555, "not about a disk")

    monkeypatch.setattr("feathervlm.bench.run_bench.run", fail)
    assert isinstance(cli("bench", "--config", "tiny").exception, OSError)


def test_the_end_of_a_long_path_is_told() -> None:
    assert short(f"{'folder/' * 30}nowhere.png", ends=True).endswith("/nowhere.png'")
    assert len(short("word " * 30)) == len(short("word " * 30, ends=True)) == 80
