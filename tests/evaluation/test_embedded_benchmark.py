"""The shipped weights load offline and answer well; the benchmark compares in pairs and refuses what does not fit."""

import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

import feathervlm
from feathervlm import PruningError
from feathervlm.embedded import benchmark, load
from feathervlm.embedded.assets import WEIGHTS
from feathervlm.embedded.questions import SceneQuestion, best_blind
from feathervlm.embedded.tasks import LOCALIZATION, TASKS
from feathervlm.evaluation.embedded_result import BenchmarkResult
from feathervlm.inference.model_spec import ModelSpec

N, SEED = 10, 100
ROOT = Path(__file__).parents[2]
SEEDS = [path.name.removeprefix("study-") for path in sorted((ROOT / "results").glob("study-small-*"))]


@pytest.fixture(scope="module")
def unpruned():
    return benchmark(n=N, seed=SEED, progress=False)


def test_the_weights_are_a_small_stock_llava(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, processor = load()
    assert type(model) is LlavaForConditionalGeneration
    config = model.config.text_config
    assert config.num_hidden_layers >= 12
    assert 64 <= config.hidden_size // config.num_attention_heads <= 128
    assert 256 <= model.config.image_seq_length <= 576
    assert sum(os.path.getsize(path) for path in WEIGHTS.iterdir()) < 25e6
    assert type(AutoModelForImageTextToText.from_pretrained(WEIGHTS)) is type(model)
    assert type(AutoProcessor.from_pretrained(WEIGHTS)) is type(processor)


@pytest.mark.parametrize("task", TASKS)
def test_it_sees(task, unpruned):
    """Floors that a lost or mixed-up weight would break; the full figures are in results/embedded/quality.json."""
    assert unpruned.tasks[task].accuracy.value >= 0.7


def test_what_it_was_shown_to_be():
    """The committed figures are of these weights: text alone is no better than a guess, the aims are reached."""
    found = json.loads((ROOT / "results/embedded/quality.json").read_text())
    assert found["provenance"]["weights_sha256"] == sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
    for name, task in found["text_only"]["tasks"].items():
        assert task["accuracy"]["value"] <= task["best_blind"] + 0.03, name
    for name, task in found["unpruned"]["tasks"].items():
        assert task["n"] >= 2000
        assert task["accuracy"]["low"] >= 0.85, name


def test_scores_find_the_target_from_the_layer_on_in_which_it_is_looked_at():
    """What model card and README say of FEATHER's default layers, and of these weights."""
    found = json.loads((ROOT / "results/embedded/lookup.json").read_text())
    assert found["provenance"]["weights_sha256"] == sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
    share = {row["layer"]: row["rope_free"] for row in found["rows"]}
    assert max(share[layer] for layer in range(1, 9)) < 1 / 6
    assert min(share[layer] for layer in range(9, 16)) > 1 / 3
    heeds = {
        row["layer"]: {kind: row[f"heeds_{kind}"] for kind in ("size", "colour", "shape")} for row in found["rows"]
    }
    assert max(heeds[layer]["colour"] for layer in range(1, 7)) < 0.02
    assert max(heeds[layer]["size"] for layer in range(1, 5)) < 0.02
    assert min(min(heeds[layer].values()) for layer in range(7, 16)) > 0.4


def test_the_study_is_of_these_weights():
    about = json.loads((ROOT / "results/study/runs.json").read_text())["about"]
    assert about["model"]["fingerprint"] == ModelSpec(str(WEIGHTS)).fingerprint()


def seed_results(name, kind):
    return json.loads((ROOT / f"results/embedded/{kind}-{name}.json").read_text())


def test_three_training_seeds_of_the_smaller_recipe_were_measured():
    assert len(SEEDS) >= 3
    weights = {seed_results(name, "quality")["provenance"]["weights_sha256"] for name in SEEDS}
    assert len(weights) == len(SEEDS)


@pytest.mark.parametrize("name", SEEDS)
def test_the_measurements_of_a_training_seed_are_of_the_same_weights(name):
    quality, lookup = (seed_results(name, kind)["provenance"] for kind in ("quality", "lookup"))
    assert quality["weights_sha256"] == lookup["weights_sha256"]
    about = json.loads((ROOT / f"results/study-{name}/runs.json").read_text())["about"]
    assert Path(about["model"]["name"]).name == name


@pytest.mark.parametrize("name", SEEDS)
def test_the_training_seeds_find_what_they_are_asked_for(name):
    """A floor for the unpruned accuracy; docs/results/seeds.md shows all of it."""
    tasks = seed_results(name, "quality")["unpruned"]["tasks"]
    assert np.mean([tasks[task]["accuracy"]["value"] for task in LOCALIZATION]) >= 0.8


@pytest.mark.full
def test_it_does_not_guess(unpruned):
    blind = benchmark("text-only", n=N, seed=SEED, progress=False, unpruned=unpruned)
    assert blind.localization.high < -0.5
    assert blind.average_tokens == 0


def test_differences_are_paired(unpruned):
    result = benchmark("fastv:layer=3,keep=0.1", ["locate", "background"], N, SEED, progress=False)
    for name, task in result.tasks.items():
        np.testing.assert_array_equal(task.unpruned, unpruned.tasks[name].right)
        assert task.difference.value == pytest.approx(task.right.mean() - task.unpruned.mean())
    assert result.localization.value == pytest.approx(result.tasks["locate"].difference.value)
    assert sum(result.kept_rows[0]) == pytest.approx(1)
    assert result.average_tokens == pytest.approx((3 * 256 + 13 * 25) / 16)
    assert 0 < result.flops_ratio < 1


@pytest.mark.full
def test_keeping_all_changes_no_answer(unpruned):
    result = benchmark("fastv:layer=3,keep=1.0", "locate", N, SEED, progress=False)
    assert result.tasks["locate"].answers == unpruned.tasks["locate"].answers
    assert result.tasks["locate"].difference.value == 0
    assert result.kept_bottom_third == [pytest.approx(1 / 3, abs=0.01)]


def test_results_are_plain_numbers_and_a_table(unpruned):
    document = unpruned.to_dict()
    assert set(document["tasks"]) == set(TASKS)
    assert all("accuracy_at_0.25" in document["tasks"][name] for name in LOCALIZATION)
    assert document["mean_difference"] == {}
    for name in TASKS:
        assert name in str(unpruned)


def test_halves_add_up(unpruned):
    task = unpruned.tasks["locate"]
    top = task.top.mean()
    assert top * task.half(True).value + (1 - top) * task.half(False).value == pytest.approx(task.accuracy.value)


def test_unseen_sizes_are_asked_about():
    result = benchmark(None, "locate", 10, 0, unseen=True, progress=False)
    assert result.unseen
    assert result.tasks["locate"].n == 10


def test_what_does_not_fit_is_refused(unpruned):
    for wrong in ({"n": 0}, {"batch": 0}, {"tasks": []}):
        with pytest.raises(PruningError, match="asks nothing"):
            benchmark(**wrong)
    with pytest.raises(PruningError, match="magic"):
        benchmark("magic", n=10**9)  # refused before a question is asked
    with pytest.raises(PruningError, match="no task 'find'"):
        benchmark(tasks="find")
    with pytest.raises(PruningError, match="answers other tasks"):
        benchmark("fastv", n=19, seed=100, unpruned=unpruned)
    pruned = benchmark("uniform:layer=3", "locate", N, SEED, progress=False)
    with pytest.raises(PruningError, match="is of 'uniform:layer=3' on 'embedded'; give an unpruned one of 'embedded'"):
        benchmark("fastv", "locate", N, SEED, unpruned=pruned)
    model, processor = load()
    with pytest.raises(PruningError, match="on 'embedded'; give an unpruned one of"):
        benchmark("fastv", "locate", N, SEED, unpruned=unpruned, model=model, processor=processor)
    with pytest.raises(PruningError, match="needs its processor"):
        benchmark(n=1, model=object())


def test_progress_is_told():
    told = []
    benchmark("uniform:layer=3", ["existence", "background"], 6, 5, batch=4, progress=lambda *now: told.append(now))
    steps = [4, 6, 10, 12]
    assert told == [(what, done, 12) for what in ("unpruned", "uniform:layer=3") for done in steps]


def test_parts_join(unpruned):
    names = ["locate", "counting"]
    parts = [benchmark(None, name, N, SEED, progress=False) for name in names]
    assert BenchmarkResult.join(parts).to_dict()["tasks"] == {name: unpruned.to_dict()["tasks"][name] for name in names}
    with pytest.raises(ValueError, match="different runs"):
        BenchmarkResult.join([parts[0], benchmark(None, "place", 2, progress=False)])


def test_a_blind_guess_uses_the_words_but_not_the_answers():
    def asked(kind, answer):
        return SceneQuestion("attribute", "", answer, kind=kind)

    questions = [asked("colour", "red"), asked("shape", "sign")] * 2
    pairs = [question for question in questions for _ in range(2)]  # each wording in both halves
    assert best_blind(pairs) == 1
    assert best_blind([asked("", str(i)) for i in range(20)]) == 0
    boxes = [(10 * i, 0, 10 * i + 40, 40) for i in range(9)]
    assert best_blind([SceneQuestion("locate", "", "", box) for box in boxes for _ in range(2)]) < 0.5


def test_the_package_offers_it():
    assert feathervlm.embedded.benchmark is benchmark
