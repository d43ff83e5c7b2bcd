"""What the command prints, and the directory that it writes."""

import json

import pytest
from synthetic import Run, cli, refused


def test_help_has_examples():
    result = cli("convert-prismatic", "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert "feathervlm convert-prismatic" in result.stdout


def test_words_and_json(tmp_path):
    run = Run(tmp_path).write()
    words = cli(*run.arguments())
    assert words.exit_code == 0, words.output
    assert "tiny+7b: siglip-vit-so400m (256 tokens) and llama2-7b-pure, resize-naive" in words.stdout
    assert "2 tensors of the vision weights are not used" in words.stdout
    found = json.loads(cli(*run.arguments("again"), "--json").stdout)
    assert found["unused"] == ["attn_pool.latent", "attn_pool.q.weight"]
    assert found["tensors"] == sum(map(len, run.model.values())) + len(run.tower) - 2
    assert found["image_token_id"] == run.vocabulary + 1
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == found["files"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "llm", "out", "run", "vision.safetensors"]


@pytest.mark.parametrize("resize", ["resize-crop", "letterbox"])
def test_what_can_differ_from_the_original_is_said(tmp_path, resize):
    run = Run(tmp_path, resize=resize).write()
    assert "note: " in cli(*run.arguments()).stdout


def test_out_is_replaced_only_by_force(tmp_path):
    run = Run(tmp_path).write()
    out = tmp_path / "out"
    out.mkdir()
    assert cli(*run.arguments()).exit_code == 0, "an empty directory is no obstacle"
    (out / "notes.txt").write_text("mine")
    assert "is not empty" in refused(run)
    assert (out / "notes.txt").read_text() == "mine"
    assert cli(*run.arguments(), "--force").exit_code == 0
    assert not (out / "notes.txt").exists()
    assert (out / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llm", "out", "run", "vision.safetensors"]


def test_sources_are_never_replaced(tmp_path):
    run = Run(tmp_path).write()
    assert "which the conversion reads" in refused(run, "--force", out="run")
    assert "is not empty" in refused(run, out="llm")
    assert "is a file" in refused(run, out="vision.safetensors")
    assert "make it first" in refused(run, out="no/where")


def test_what_was_there_stays_if_writing_fails(tmp_path, monkeypatch):
    run = Run(tmp_path).write()
    assert cli(*run.arguments()).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("feathervlm.integrations.prismatic.processor.LlavaProcessor.save_pretrained", full)
    assert "No space left on device" in refused(run, "--force")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
