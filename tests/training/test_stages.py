"""Every stage trains a tiny model, resumes where it stopped, and leaves a directory that the auto classes load."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import typer
from transformers import AutoModelForImageTextToText, AutoProcessor

from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import LoadedModel
from feathervlm.inference.prompts import Prompt
from training import align, cut, loop, questions, stages
from training.build import VOCABULARY, Size, build_model, layers_in
from training.exam import examine
from training.export import export
from training.language import train_language
from training.loop import Plan
from training.questions import Asked
from training.recipe import EMBEDDED, Early
from training.stages import latest, launch, work
from training.vision import train_vision
from training.world.tasks import TASKS, sample

SIZE = Size(layers=4, width=64, heads=2, hidden=64, tower_layers=2, tower_width=32, tower_hidden=32)
PLAN = Plan(steps=4, matrix_rate=2e-3, other_rate=1e-3, warm_up=2)
TINY = replace(
    EMBEDDED,
    name="tiny",
    size=SIZE,
    vision=PLAN,
    vision_batch=2,
    language=PLAN,
    language_batch=2,
    align=PLAN,
    tune=PLAN,
    images=1,
    frozen=1,
    least_layers=3,
    early=Early(bag_layer=1, answer_layer=2),
)


@pytest.fixture(scope="module", autouse=True)
def little_data():
    """Measure and fit on little data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "HELD_OUT", 1)
        patch.setattr(align, "IMAGES", 1)
        patch.setattr(cut, "BATCHES", 1)
        patch.setattr(cut, "QUESTIONS", 2)
        patch.setattr(stages, "begin_with_words", partial(stages.begin_with_words, scenes=4, steps=5))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, little_data):
    """The folder of a run through all stages."""
    path = tmp_path_factory.mktemp("run") / "new"
    train_vision(build_model(SIZE, 0).model.vision_tower, path, TINY, 0, held_out=2)
    train_language(build_model(SIZE, 0), path, TINY, 0)
    work(0, "align", path, 0, TINY, 1, None, 0)
    cut.cut(path, TINY, 0)
    work(0, "tune", path, 0, TINY, 1, None, 0)
    return path


def weights(path):
    return torch.load(path, weights_only=True)["module"]


def test_stages_log_what_they_measured(folder):
    for stage in ("vision", "language", "align", "tune"):
        record = json.loads((folder / f"{stage}.jsonl").read_text().splitlines()[-1])
        assert record["step"] == 4
        assert np.isfinite(record["loss"])
        assert any(key.startswith("held_out_") for key in record)


def test_alignment_leaves_frozen_what_is_to_be_frozen(folder):
    tower, language, aligned = (weights(folder / f"{stage}.pt") for stage in ("vision", "language", "align"))
    decoder = "model.model.language_model"
    for name, weight in aligned.items():
        frozen = name.startswith(("model.model.vision_tower", f"{decoder}.embed_tokens", f"{decoder}.layers.0"))
        origin = tower.get(name.replace("model.model.vision_tower", "tower"))
        if origin is None:
            origin = language.get(name.replace(decoder, "decoder").replace("model.lm_head", "head"))
        if origin is not None:
            assert torch.equal(weight, origin) == frozen, name
    before, tuned = (weights(folder / f"{stage}.pt") for stage in ("cut", "tune"))
    for name, weight in tuned.items():
        # The early head is not used in the last stage.
        same = name.startswith(("model.model.vision_tower", "answer."))
        assert torch.equal(weight, before[name]) == same, name


def test_the_cut_leaves_the_layers_that_it_names(folder):
    aligned, shorter = (weights(folder / f"{stage}.pt") for stage in ("align", "cut"))
    choice = json.loads((folder / "cut.json").read_text())
    kept = [layer for layer in range(SIZE.layers) if layer not in choice["layers"]]
    assert choice["depth"] == len(kept) == layers_in(shorter)
    assert 0 not in choice["layers"]
    for new, old in enumerate(kept):
        name = "model.model.language_model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(shorter[name.format(new)], aligned[name.format(old)])


def test_an_interrupted_stage_goes_on_where_it_stood(folder, tmp_path):
    for name in ("vision.pt", "language.pt"):
        (tmp_path / name).symlink_to(folder / name)
    work(0, "align", tmp_path, 0, TINY, 1, 2, 0)
    assert torch.load(tmp_path / "align.pt", weights_only=True)["step"] == 2
    work(0, "align", tmp_path, 0, TINY, 1, None, 0)
    resumed = weights(tmp_path / "align.pt")
    for name, weight in weights(folder / "align.pt").items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.full
def test_two_processes_do_what_one_does(folder, tmp_path):
    """Both see half of the images of each step; with as many questions on each, the mean gradient is the same."""
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        for name in ("vision.pt", "language.pt"):
            (tmp_path / str(count) / name).symlink_to(folder / name)
        launch("align", tmp_path / str(count), 0, replace(TINY, images=2), count, 1)
    one, two = (weights(tmp_path / str(count) / "align.pt") for count in (1, 2))
    start = weights(folder / "language.pt")["head.weight"]
    step = one["model.lm_head.weight"] - start
    assert step.abs().max() > 0
    # Questions are weighed by their number on each process, and bfloat16 rounds; Adam's first step only has signs.
    agree = ((two["model.lm_head.weight"] - start).sign() == step.sign()).float().mean()
    assert agree > 0.9


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(typer.BadParameter, match="1 images per step cannot be divided among 2 processes"):
        launch("align", folder, 0, TINY, 2, None)
    with pytest.raises(typer.BadParameter, match="run the stage `vision` first"):
        launch("align", tmp_path, 0, TINY, 1, None)
    with pytest.raises(typer.BadParameter, match="run the stage `cut` first"):
        launch("tune", tmp_path, 0, TINY, 1, None)
    with pytest.raises(typer.BadParameter, match=r"vision.* 'tiny seed 0, 2 scenes', and this is 'tiny seed 1'"):
        launch("align", folder, 1, TINY, 1, None)
    with pytest.raises(typer.BadParameter, match=r"vision.* 'tiny seed 0, 2 scenes', and this is 'flat seed 0'"):
        launch("align", folder, 0, replace(TINY, name="flat"), 1, None)
    with pytest.raises(typer.BadParameter, match=r"vision\.pt is at step 4; finish the stage `vision` first"):
        launch("align", folder, 0, replace(TINY, vision=replace(PLAN, steps=5)), 1, None)
    with pytest.raises(typer.BadParameter, match="the run 'tiny seed 0, 1 images', not 'tiny seed 0, 2 images'"):
        launch("align", folder, 0, replace(TINY, images=2), 1, None)
    with pytest.raises(typer.BadParameter, match="there is no checkpoint of a stage with images"):
        latest(tmp_path, TINY, 0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(typer.BadParameter, match="is not a model directory"):
        export(folder / "tune.pt", SIZE, tmp_path)
    assert (tmp_path / "notes.txt").exists()


def test_the_export_loads_with_auto_classes_and_answers(folder, tmp_path):
    target = tmp_path / "weights"
    target.mkdir()
    (target / "README.md").write_text("the card")
    export(folder / "tune.pt", SIZE, target)
    assert (target / "README.md").read_text() == "the card"
    model, processor = AutoModelForImageTextToText.from_pretrained(target), AutoProcessor.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    asked = [sample("locate", 0, 0), sample("counting", 0, 1)]
    answerer = Answerer(LoadedModel.of(model.float().eval(), processor))
    answers = answerer.ask([Prompt(question.text, (scene.image,)) for scene, question in asked])
    assert len(answers) == 2
    assert {word for answer in answers for word in answer.text.split()} <= set(VOCABULARY)
    for content in ("where is the sign ?", [{"type": "text", "text": "where is the sign ?"}]):
        text_ = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert text_ == "<s>where is the sign ? assistant:"


def test_an_exported_model_can_be_examined(folder, tmp_path):
    export(folder / "tune.pt", SIZE, tmp_path / "model")
    found = examine(tmp_path / "model", 2, 0)
    assert set(found) == set(TASKS)
    assert all(0 <= interval["value"] <= 1 for interval in found.values())


def test_layers_are_measured_one_by_one(folder):
    stage, learner = latest(folder, TINY, 0)
    found = cut.measure_layers(learner, TINY)
    depth = learner.model.config.text_config.num_hidden_layers
    assert stage == "tune"
    assert len(found["without"]) == len(found["lookup"]["free"]) == depth
    assert all(one["loss"] != found["whole"]["loss"] for one in found["without"])


def test_batches_made_ahead_are_those_made_when_asked_for():
    def make(step):
        return questions.make_batch([("train", 0, step, 0)], 0, Asked({"locate": 2}), SIZE.patch)

    here, ahead = (list(loop.ahead(make, range(3, 8), processes)) for processes in (0, 2))
    assert len(here) == 5
    for mine, theirs in zip(here, ahead, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    assert torch.equal(here[0][1], make(3)[1])
    assert not torch.equal(here[0][1], here[1][1])
