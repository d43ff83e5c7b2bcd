"""Checkpoints as people have them: weights that are not numbers, and words that a model does not know."""

import json
import shutil
import sys
from pathlib import Path

import odd_checkpoints
import odd_pictures
import pytest
import torch

import feathervlm
from command_line import cli, sentence
from feathervlm import PruningError
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import LoadedModel, load
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt

sys.path.append(str(Path(__file__).parents[1] / "integrations/prismatic"))
from synthetic import Run, refused

WORDS = "describe the weather"


@pytest.mark.parametrize("kind", odd_checkpoints.BROKEN)
def test_a_model_with_weights_that_are_no_numbers_does_not_answer(kind, demo, tmp_path):
    name = odd_checkpoints.broken(demo, tmp_path / "model", kind)
    said = "holds NaN or infinity; get the weights again" if kind in ("nan", "inf") else "holds integers"
    with pytest.raises(PruningError, match=said) as caught:
        load(ModelSpec(str(tmp_path / "model")))
    assert name.split(".", 3)[-1].split(".self_attn")[0] in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), odd_checkpoints.FILES)
def test_a_model_directory_with_a_damaged_file_is_one_sentence(name, kind, demo, tmp_path):
    model = shutil.copytree(demo, tmp_path / "model")
    (model / name).write_bytes(odd_checkpoints.FILES[name, kind])
    ask = ["--image", demo / "scene.png", "--prompt", "Where?", "--max-new-tokens", 1, "--repeats", 1]
    sentence(cli("run", "--model", model, *ask))


def test_weights_of_another_shape_are_refused_with_both_shapes(demo, tmp_path):
    model = shutil.copytree(demo, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 100
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        PruningError, match=r"mlp\.\w+_proj\.weight in .* has the shape \(.*128.*\), and \(.*100.*\) by its"
    ):
        load(ModelSpec(str(model)))


def test_quantized_weights_are_taken_at_the_word_of_their_config(demo, tmp_path):
    from feathervlm.utils.weights import check_types

    odd_checkpoints.broken(demo, tmp_path / "model", "int8")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}))
    check_types(tmp_path / "model")


@pytest.mark.parametrize(
    ("part", "name", "change", "said"),
    [
        ("llm_backbone", "llm.model.layers.1.mlp.up_proj.weight", lambda t: t.fill_(float("nan")), "holds NaN"),
        ("projector", "projector.0.weight", lambda t: t.fill_(float("inf")), "holds NaN or infinity"),
        ("projector", "projector.2.bias", lambda t: t.to(torch.int32), "holds int32 numbers; give weights in floating"),
        ("llm_backbone", "llm.lm_head.weight", lambda t: t.to(torch.int8), "holds int8 numbers"),
        (None, "blocks.0.norm1.weight", lambda t: t.fill_(float("nan")), "holds NaN"),
        (None, "blocks.0.norm1.bias", lambda t: t.to(torch.bool), "holds bool numbers"),
    ],
)
def test_a_checkpoint_with_weights_that_are_no_numbers_is_not_converted(part, name, change, said, tmp_path):
    run = Run(tmp_path)
    tensors = run.tower if part is None else run.model[part]
    tensors[name] = change(tensors[name].clone())
    run.write()
    torch.save({"model": run.model}, tmp_path / "run/checkpoints/latest-checkpoint.pt")
    message = refused(run)
    assert said in message
    assert f"{part or 'vision_backbone'}: {name}" in message
    assert [path.name for path in tmp_path.iterdir() if "feathervlm" in path.name] == []


COMMANDS = ("run", "run-weights", "demo", "demo-weights", "diagnose", "eval", "study")


@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=() if one in ("run", "demo-weights") else pytest.mark.full) for one in COMMANDS]
)
def test_words_that_the_embedded_model_does_not_know_are_refused_in_every_command(command, tmp_path):
    picture = tmp_path / "in/a.png"
    picture.parent.mkdir()
    picture.write_bytes(odd_pictures.save(odd_pictures.Image.fromarray(odd_pictures.PIXELS), "PNG"))
    lines = tmp_path / "mine.jsonl"
    lines.write_text(json.dumps({"image": "in/a.png", "prompt": WORDS, "answer": "red"}))
    out, weights = tmp_path / "out", feathervlm.embedded.assets.WEIGHTS
    asked = ["--image", picture, "--prompt", WORDS]
    options = {
        "run": asked,
        "demo": [*asked, "--out", out],
        "diagnose": ["--images", picture.parent, "--prompt", WORDS, "--out", out],
        "eval": ["--tasks", lines, "--out", out],
        "study": ["--data", lines, "--out", out],
    }
    name, _, other = command.partition("-")
    said = sentence(cli(name, *options[name], *(["--model", weights] if other else [])))
    assert "does not know 'describe', 'weather'; ask something like" in said
    assert not out.exists()


def test_words_that_the_embedded_model_does_not_know_are_refused_by_the_library():
    answerer = Answerer(LoadedModel.of(*feathervlm.embedded.load()))
    with pytest.raises(PruningError, match="does not know 'describe'"):
        answerer.ask([Prompt(WORDS, (odd_pictures.Image.fromarray(odd_pictures.PIXELS),))])


@pytest.mark.parametrize("command", ["run", "demo", "diagnose"])
def test_a_placeholder_that_the_template_adds_is_refused_before_weights_are_read(command, demo, tmp_path, monkeypatch):
    from feathervlm.inference import loading

    monkeypatch.setattr(loading, "load_model", None)
    picture = demo / "scene.png"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(picture.read_bytes())
    where = ["--images", tmp_path / "in"] if command == "diagnose" else ["--image", picture]
    out = [] if command == "run" else ["--out", tmp_path / "out"]
    said = sentence(cli(command, "--model", demo, *where, *out, "--prompt", "Where is <image>?"))
    assert "leave it out" in said
