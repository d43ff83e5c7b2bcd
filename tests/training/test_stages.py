"""Every stage trains a tiny model, resumes where it stopped, and leaves a directory that the auto classes load."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor

from feathervlm import embedded
from feathervlm.embedded.questions import write_box
from feathervlm.embedded.scenes import SHAPES, SIDE, draw
from feathervlm.embedded.tasks import LOCALIZATION, TASKS, sample
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import LoadedModel
from feathervlm.inference.prompts import Prompt
from training import loop, questions, text
from training.build import EOS, VOCABULARY, Size, build_model
from training.export import export
from training.language import train_language
from training.loop import Plan
from training.questions import Asked
from training.recipe import RECIPES, SHARES, Looking, Recipe, find
from training.stages import launch, work
from training.vision import dense_labels, train_vision

SIZE = Size(layers=3, width=64, hidden=64, tower_layers=1, tower_width=32, tower_hidden=32)
PLAN = Plan(steps=4, matrix_rate=2e-3, other_rate=1e-3, warm_up=2)
TINY = Recipe(
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
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run through all four stages."""
    path = tmp_path_factory.mktemp("run") / "new"
    tower = build_model(SIZE, 0).model.vision_tower
    train_vision(tower, SIZE.patch, SIZE.tower_width, path, PLAN, batch=2, seed=0, run=TINY.run(0))
    train_language(build_model(SIZE, 0), path, TINY, 0)
    for stage in ("align", "tune"):
        work(0, stage, path, 0, TINY, 1, None, 0)
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
    tower, language, aligned, tuned = (weights(folder / f"{s}.pt") for s in ("vision", "language", "align", "tune"))
    decoder = "model.language_model"
    for name, weight in aligned.items():
        frozen = name.startswith(("model.vision_tower", f"{decoder}.embed_tokens", f"{decoder}.layers.0"))
        origin = tower.get(name.replace("model.vision_tower", "tower"))
        if origin is None:
            origin = language.get(name.replace(decoder, "decoder").replace("lm_head", "head"))
        if origin is not None:
            assert torch.equal(weight, origin) == frozen, name
        assert torch.equal(weight, tuned[name]) == name.startswith("model.vision_tower"), name


def test_an_interrupted_stage_goes_on_where_it_stood(folder, tmp_path):
    for name in ("vision.pt", "language.pt"):
        (tmp_path / name).symlink_to(folder / name)
    work(0, "align", tmp_path, 0, TINY, 1, 2, 0)
    assert torch.load(tmp_path / "align.pt", weights_only=True)["step"] == 2
    work(0, "align", tmp_path, 0, TINY, 1, None, 0)
    for name, weight in weights(folder / "align.pt").items():
        assert torch.equal(weight, weights(tmp_path / "align.pt")[name]), name


@pytest.mark.full
def test_more_layers_are_frozen_until_the_later_ones_have_learned_to_look(folder, tmp_path):
    for name in ("vision.pt", "language.pt"):
        (tmp_path / name).symlink_to(folder / name)
    recipe = replace(TINY, looking=Looking(2, 2, Asked({"locate": 3}, captions=1)))
    before = weights(folder / "language.pt")
    for stop, frozen in ((2, {0, 1}), (None, {0})):
        work(0, "align", tmp_path, 0, recipe, 1, stop, 0)
        after = weights(tmp_path / "align.pt")
        for layer in range(SIZE.layers):
            name = f"layers.{layer}.self_attn.q_proj.weight"
            same = torch.equal(after[f"model.language_model.{name}"], before[f"decoder.{name}"])
            assert same == (layer in frozen), (stop, layer)


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
    step = one["lm_head.weight"] - start
    assert step.abs().max() > 0
    # Questions are weighed by their number on each process, and bfloat16 rounds; Adam's first step only has signs.
    agree = ((two["lm_head.weight"] - start).sign() == step.sign()).float().mean()
    assert agree > 0.9


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(typer.BadParameter, match="1 images per step cannot be divided among 2 processes"):
        launch("align", folder, 0, TINY, 2, None)
    with pytest.raises(typer.BadParameter, match="run the stage `vision` first"):
        launch("align", tmp_path, 0, TINY, 1, None)
    with pytest.raises(typer.BadParameter, match=r"vision.* 'tiny seed 0, 2 scenes', and this is 'tiny seed 1'"):
        launch("align", folder, 1, TINY, 1, None)
    with pytest.raises(typer.BadParameter, match=r"vision.* 'tiny seed 0, 2 scenes', and this is 'flat seed 0'"):
        launch("align", folder, 0, replace(TINY, name="flat"), 1, None)
    with pytest.raises(typer.BadParameter, match="the run 'tiny seed 0, 1 images', not 'tiny seed 0, 2 images'"):
        launch("align", folder, 0, replace(TINY, images=2), 1, None)
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


def test_questions_fit_their_weights():
    _, ids, targets, weight, segments, numbers = questions.make_batch(
        [("train", 0, 0, i) for i in range(3)], 8, Asked(SHARES)
    )
    assert ids.shape == targets.shape == weight.shape == segments.shape == numbers.shape
    assert torch.equal(ids > 0, segments > 0)
    inside = (segments[..., 1:] > 0) & (segments[..., 1:] == segments[..., :-1])
    assert torch.equal(ids[..., 1:][inside], targets[..., :-1][inside])
    assert (ids[weight == Asked(SHARES).coordinates[0]] == text.INDEX["assistant:"]).all()
    found = 0
    for row in range(ids.shape[1]):
        for image in range(3):
            for number in range(1, int(segments[image, row].max()) + 1):
                mine = segments[image, row] == number
                answered = (weight[image, row][mine] > questions.END_WEIGHT).sum()
                assert answered == (4 if list(TASKS)[numbers[image, row][mine][0]] in LOCALIZATION else 1)
                assert targets[image, row][mine][-1] == EOS
                found += 1
    assert found > 0.8 * 3 * sum(SHARES.values())


def test_captions_say_what_can_be_seen():
    rng = np.random.default_rng(0)
    asked = Asked({}, captions=3, coordinates=(0.4, 0.3, 0.2, 0.1))
    for seed in range(10):
        scene = draw(np.random.default_rng(seed))
        said = questions.caption(rng, scene, asked)
        assert len(said) == min(3, len(scene.items))
        for tokens, begin, weights, task in said:
            assert task == questions.CAPTION
            assert len(weights) == len(tokens) - begin
            words = [VOCABULARY[token] for token in tokens[begin:]]
            places = "".join(word for word in words if word.startswith("<loc"))
            item = next(item for item in scene.items if write_box(item.box) == places)
            assert words[:3] == [item.size, item.colour, item.shape]
            boxes = [weight for word, weight in zip(words, weights, strict=True) if word.startswith("<loc")]
            assert tuple(boxes) == asked.coordinates
    _, _, _, weight, segments, numbers = questions.make_batch([("train", 0, 0, 0)], 8, Asked(SHARES, captions=2))
    mine = numbers == questions.CAPTION
    assert len({(row, int(segments[0, row, at])) for _, row, at in mine.nonzero().tolist()}) == 2
    assert (weight[mine] == questions.CAPTION_WEIGHT).sum() >= 2 * 3


@given(st.lists(st.integers(1, questions.ROW), min_size=1, max_size=40))
def test_rows_hold_every_question_once(lengths):
    places = questions.arrange(lengths)
    taken = {(row, start + i) for (row, start), length in zip(places, lengths, strict=True) for i in range(length)}
    assert len(taken) == sum(lengths)
    assert max(place for _, place in taken) < questions.ROW
    assert {row for row, _ in taken} == set(range(1 + max(row for row, _ in taken)))


def test_a_question_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="33 tokens does not fit into a row of 32"):
        questions.arrange([3, 33])


def test_dense_labels_name_the_object_under_each_patch():
    scene = draw(np.random.default_rng(3))
    labels = dense_labels(scene, 8).reshape(SIDE // 8, SIDE // 8, -1)
    for item in scene.items:
        x, y = (int(value) // 8 for value in item.centre)
        assert labels[y, x, 1] == SHAPES.index(item.shape)
        assert labels[y, x, -1] == 1
    assert (labels[..., -1] == 1).sum() == len(scene.items)


@pytest.mark.parametrize("mix", [text.Mix(), text.Mix(recall=0.5), text.Mix(bursty=0.0, questions=(10, 21))])
def test_sequences_are_as_long_as_asked(mix):
    rng = np.random.default_rng(0)
    for _ in range(20):
        sequence = text.sequence(rng, 100, 4, mix)
        assert len(sequence) == 101
        assert all(0 <= token < len(VOCABULARY) and weight >= 0 for token, weight in sequence)


def test_phrases_come_back_word_for_word():
    """After a phrase was said once, each word but its first follows the one before as it did."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = text.recall(rng)
        assert tokens[0] == (text.BOS, 0.0)
        followers: dict[int, set[int]] = {}
        again = 0
        for (before, _), (token, weight) in pairwise(tokens):
            if weight == text.WORD:
                again += 1
                assert token in followers[before]
            followers.setdefault(before, set()).add(token)
        assert again > len(tokens) / 4


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole(name):
    recipe = find(name)
    assert recipe.name == name
    assert recipe.frozen < recipe.size.layers
    assert recipe.recall_first < recipe.language.steps
    assert set(recipe.asked.shares) == set(SHARES)
    assert len(recipe.curriculum) == len(questions.MOST_OBJECTS) - 1
    assert list(recipe.curriculum) == sorted(recipe.curriculum)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(typer.BadParameter, match="there is no recipe 'large'; choose one of shipped, small"):
        find("large")


@pytest.mark.full
def test_a_recipe_without_a_vision_stage_takes_the_shipped_tower(tmp_path):
    recipe = replace(
        TINY,
        vision=None,
        size=Size(layers=2),
        recall_first=2,
        text=text.Mix(recall=0.5),
        words=True,
        asked=Asked(SHARES, captions=2),
    )
    train_language(build_model(recipe.size, 0), tmp_path, recipe, 0)
    work(0, "align", tmp_path, 0, recipe, 1, 1, 0)
    tower = embedded.load()[0].model.vision_tower.state_dict()
    found = weights(tmp_path / "align.pt")
    assert all(torch.equal(found[f"model.vision_tower.{name}"], weight) for name, weight in tower.items())


def test_batches_made_ahead_are_those_made_when_asked_for():
    def make(step):
        return questions.make_batch([("train", 0, step, 0)], 8, Asked(SHARES))

    here, ahead = (list(loop.ahead(make, range(3, 8), processes)) for processes in (0, 2))
    assert len(here) == 5
    for mine, theirs in zip(here, ahead, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    assert torch.equal(here[0][1], make(3)[1])
    assert not torch.equal(here[0][1], here[1][1])
