"""`feathervlm run` on a tiny random model: results, JSON, files, and one clear sentence for every bad input."""

import json
import re
import shutil
from pathlib import Path

import pytest
import transformers as tf
from PIL import Image
from typer.testing import Result

import feathervlm
from command_line import cli, document, sentence
from families.processors import PROCESSORS
from family_cases import FAMILY_CASES
from feathervlm.inference import compare as running


@pytest.fixture
def bare(demo: Path, tmp_path: Path) -> Path:
    """The model without a chat template."""
    return without(demo, tmp_path, "chat_template.jinja")


def without(demo: Path, tmp_path: Path, name: str) -> Path:
    copy = shutil.copytree(demo, tmp_path / "copy")
    (copy / name).unlink()
    return copy


def ask(demo: Path, *more: object, **changes: object) -> Result:
    """`feathervlm run` with sensible options, some changed; None leaves one out."""
    options = {
        "model": demo,
        "image": demo / "scene.png",
        "prompt": "Where is the house?",
        "method": "feather",
        "max_new_tokens": 4,
        "repeats": 1,
        **changes,
    }
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    return cli("run", *given, *more)


def test_run_in_words(demo: Path) -> None:
    result = ask(demo)
    assert result.exit_code == 0, result.output
    for words in ("unpruned:", "pruned:", "visual tokens per layer", "first token", "whole answer"):
        assert words in result.stdout
    assert result.stderr == ""


def test_run_as_json(demo: Path) -> None:
    found = document(ask(demo, "--json", method="fastv:layer=1,keep=0.25"))
    assert found["method"] == "fastv:layer=1"
    assert found["prompt"] == "Where is the house?"
    assert found["report"]["tokens_per_layer"] == [[64, 16, 16, 16]]
    assert found["new_tokens"] == {"unpruned": 4, "pruned": 4}
    for seconds in found["seconds"].values():
        assert 0 < seconds["first_token"] < seconds["total"]
    assert found["versions"]["feathervlm"]
    assert found["answers"]["unpruned"] != found["answers"]["pruned"]


def test_keeping_everything_keeps_the_answer(demo: Path) -> None:
    answers = document(ask(demo, "--json", method="fastv:layer=1,keep=1.0", max_new_tokens=8))["answers"]
    assert answers["pruned"] == answers["unpruned"]


def test_run_unpruned_only(demo: Path) -> None:
    found = document(ask(demo, "--json", method="none"))
    assert found["method"] == "unpruned"
    assert found["answers"]["pruned"] is found["seconds"]["pruned"] is found["report"] is None
    assert "pruned  " not in ask(demo, method="none").stdout.replace("unpruned", "")


@pytest.mark.parametrize(("enough", "said"), [(0.0, True), (1e9, False)])
def test_no_gain_is_said(demo: Path, monkeypatch: pytest.MonkeyPatch, enough: float, said: bool) -> None:
    monkeypatch.setattr(running, "GAIN", enough)
    assert ("There was no gain" in ask(demo).stdout) is said
    assert document(ask(demo, "--json"))["gain"] is not said


def test_two_images_and_their_overlay(demo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jpg"
    Image.new("RGB", (100, 300), "navy").save(other)
    kept = tmp_path / "kept.png"
    found = document(ask(demo, "--image", other, "--overlay", kept, "--json", method="pyramiddrop"))
    assert found["report"]["grids"] == [[[1, 8, 8], [1, 8, 8]]]
    assert found["images"] == [str(demo / "scene.png"), str(other)]
    with Image.open(kept) as picture:
        assert picture.width > 3 * 384  # three stages side by side
        assert picture.height > 288 + 384  # two pictures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.png", "other.jpg"]


def test_a_model_that_cuts_pictures_into_tiles(tmp_path: Path) -> None:
    processor, model = PROCESSORS["llava_next"](), FAMILY_CASES["llava_next"].model()
    processor.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    Image.new("RGB", (150, 70), "white").save(tmp_path / "wide.png")
    changes = {"image": tmp_path / "wide.png", "prompt": "word7 word8", "overlay": tmp_path / "kept.png"}
    found = document(ask(tmp_path, "--json", **changes))
    assert found["report"]["grids"] == [[[[1, 6, 6], [1, 6, 12]]]]
    panel, row = 384, 384 * 70 // 150 + 24
    assert Image.open(tmp_path / "kept.png").size == (2 * panel + 12, 2 * row)


def test_a_prompt_with_its_own_placeholders(bare: Path) -> None:
    found = document(ask(bare, "--json", prompt="USER: <image>\nWhere? ASSISTANT:"))
    assert found["report"]["grids"] == [[[1, 8, 8]]]


def test_no_strict_runs_unpruned_and_says_so(demo: Path, tmp_path: Path) -> None:
    kept, copy = tmp_path / "kept.png", shutil.copytree(demo, tmp_path / "copy")
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "prefill_chunk_size": 1000}))
    assert "prefill_chunk_size=1000" in sentence(ask(copy))
    result = ask(copy, "--no-strict", "--json", "--overlay", kept)
    found = document(result)
    assert found["report"]["pruned"] is False
    assert found["answers"]["pruned"] == found["answers"]["unpruned"]
    assert result.stderr.count("warning: feathervlm runs unpruned: prefill_chunk_size=1000") == 1
    assert not kept.exists()


def test_missing_weights_are_a_warning(demo: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(demo, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "k_proj" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name}, copy / "model.safetensors", {"format": "pt"}
    )
    result = ask(copy, method="none")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: feathervlm found no weights for 1 tensors")


def test_control_characters_do_not_reach_the_terminal(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.LlavaProcessor, "decode", lambda *_, **__: "\x1b[31mred\x07")
    assert not re.search(r"[\x1b\x07]", ask(demo).stdout)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("method", "nope", "'nope'"),
        ("method", "feather:colour=3", "'colour'"),
        ("method", "feather:keep=1.5", "keep=1.5"),
        ("method", "feather:keep", "'keep'"),
        ("method", "fastv:layer=99", "Layer 99"),
        ("image", "missing.png", "missing.png"),
        ("image", __file__, "test_run_command.py"),
        ("image", Path(__file__).parent, "cli"),
        ("model", "./missing", "./missing"),
        ("model", "missing", "missing"),
        ("model", "", "''"),
        ("model", Path(__file__).parent, "cli"),
        ("prompt", "What is <image>?", "<image>"),
        ("dtype", "int8", "'int8'"),
        ("device", "toaster", "'toaster'"),
        ("attn", "telepathy", "'telepathy'"),
        ("attn", "flex_attention", "'flex_attention'"),
        ("overlay", "missing/kept.png", "missing/kept.png"),
        ("overlay", "kept.txt", "kept.txt"),
        ("overlay", "kept", "kept does not end like a picture"),
    ],
)
def test_a_bad_value_is_named_in_one_sentence(demo: Path, option: str, value: object, said: str) -> None:
    assert said in sentence(ask(demo, **{option: value}))


@pytest.mark.parametrize("prompt", ["Where?", "<image> and <image>?"])
def test_placeholders_must_match_the_images(bare: Path, prompt: str) -> None:
    said = sentence(ask(bare, prompt=prompt))
    assert f"{prompt.count('<image>')} of 1 image placeholders <image>" in said


def test_a_model_that_takes_no_images(demo: Path, tmp_path: Path) -> None:
    tf.LlamaConfig().save_pretrained(tmp_path)
    assert f"'{tmp_path}' is a llama, which takes no images" in sentence(ask(demo, model=tmp_path))


def test_a_family_that_cannot_be_pruned(demo: Path, tmp_path: Path) -> None:
    tf.FuyuConfig().save_pretrained(tmp_path)
    assert "(fuyu) cannot be pruned: " in sentence(ask(demo, model=tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "processor_config.json"])
def test_a_model_directory_with_holes(demo: Path, tmp_path: Path, name: str) -> None:
    copy = without(demo, tmp_path, name)
    assert str(copy) in sentence(ask(copy))


def test_damaged_weights(demo: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo, tmp_path / "copy")
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert str(copy) in sentence(ask(copy))


def test_a_truncated_picture(demo: Path, tmp_path: Path) -> None:
    picture = tmp_path / "half.png"
    picture.write_bytes((demo / "scene.png").read_bytes()[:900])
    assert str(picture) in sentence(ask(demo, image=picture))


def test_an_overlay_needs_a_method(demo: Path, tmp_path: Path) -> None:
    assert "kept.png" in sentence(ask(demo, method="none", overlay=tmp_path / "kept.png"))


def test_nothing_heavy_is_loaded_for_a_bad_method(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(tf.AutoModelForImageTextToText, "from_pretrained", fail)
    for changes in ({"method": "fastv:layer=99"}, {"prompt": "<image>"}, {"attn": "telepathy"}):
        sentence(ask(demo, **changes))


def test_unexpected_errors_keep_their_traceback(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(feathervlm.Report, "to_dict", fail)
    assert isinstance(ask(demo, "--json").exception, RuntimeError)


def test_a_picture_and_a_question_are_needed() -> None:
    assert "There is no --image; give a picture" in sentence(cli("run", "--prompt", "Where?"))
    assert "There is no --image and no --prompt" in sentence(cli("run"))
