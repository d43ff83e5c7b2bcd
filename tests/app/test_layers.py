"""What a layer sees, and scores: as the report says, and without a change of what is kept."""

import numpy as np
import pytest

from feathervlm.app.layers import (
    DROPPED,
    FROZEN,
    KEPT,
    MERGED,
    WAITING,
    plane_views,
    score_maps,
    scoring,
    token_states,
)
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.inference.prompts import Prompt
from feathervlm.methods import available, get
from method_cases import representatives

DEPTH = 16


@pytest.fixture(scope="module")
def answerer(models):
    return models.get("embedded")


@pytest.fixture(scope="module")
def prompt():
    scene, question = sample("locate", HELD_OUT, 6)
    return Prompt(question.text, (scene.image,))


def look(answerer, prompt, spec):
    return answerer.look([prompt], spec)


@pytest.mark.parametrize("spec", ["fastv:layer=2", "feather:layers=4+9", "visionzip", "pool", "text-only"])
def test_states_are_those_of_the_report(answerer, prompt, spec):
    report = look(answerer, prompt, spec)
    states = token_states(report)
    assert (states == KEPT).sum(1).tolist() == report.tokens_per_layer[0]
    for stage in report.stages:
        assert np.flatnonzero(states[stage.layer] == KEPT).tolist() == stage.kept[0].tolist()
        lost = states[stage.layer] != KEPT
        assert (states[stage.layer :][:, lost] != KEPT).all(), "what left does not return"
    expected = {"visionzip": MERGED, "pool": MERGED}.get(spec, DROPPED)
    assert set(np.unique(states[-1])) <= {KEPT, DROPPED, expected}
    assert expected in states[-1]


@pytest.mark.parametrize(("leave", "state"), [("wait", WAITING), ("freeze", FROZEN)])
def test_tokens_that_wait_or_are_frozen_are_told_apart(answerer, prompt, leave, state):
    spec = f"feather:layers=4+9,leave={leave}"
    report = look(answerer, prompt, spec)
    states = token_states(report)
    assert (states == KEPT).sum(1).tolist() == report.tokens_per_layer[0]
    counts = {WAITING: report.waiting_per_layer, FROZEN: report.frozen_per_layer}[state][0]
    assert (states == state).sum(1).tolist() == counts
    assert max(counts) > 0
    maps = score_maps(answerer, prompt, get(spec).schedule(), DEPTH, rope=False)
    assert sorted(maps) == [1, 2, 3, 4], "a stage more would bring the tokens back"


def test_a_view_is_the_grid_of_the_report(answerer, prompt):
    report = look(answerer, prompt, "feather:layers=4+9")
    (view,) = plane_views(report, (128, 128), answerer.processor)
    assert view.box == (0, 0, 128, 128)
    assert view.states.shape == (DEPTH, 16, 16)
    for layer, stage in ((4, 0), (8, 0), (9, 1), (15, 1)):
        assert np.array_equal(view.states[layer] == KEPT, report.grid(stage=stage)[0].numpy())


def test_scores_are_those_that_methods_use(answerer, prompt):
    fastv, feather = (look(answerer, prompt, spec) for spec in ("fastv:layer=2", "feather:layers=4+9"))
    with_rope = score_maps(answerer, prompt, get("fastv:layer=2").schedule(), DEPTH, rope=True)
    assert np.allclose(with_rope[2].scores.ravel(), fastv.stages[0].scores[0].numpy(), atol=1e-6)
    without = score_maps(answerer, prompt, get("feather:layers=4+9").schedule(), DEPTH, rope=False)
    for stage in feather.stages:
        present = np.isfinite(without[stage.layer].scores)
        assert np.allclose(without[stage.layer].scores[present], stage.scores[0].numpy(), atol=1e-6)
    # Between the stages the map has the tokens that the layer before has seen.
    assert [np.isfinite(without[layer].scores).sum() for layer in (4, 5, 9, 10)] == [
        256, len(feather.stages[0].kept[0]), len(feather.stages[0].kept[0]), len(feather.stages[1].kept[0]),
    ]  # fmt: skip
    assert sorted(without) == list(range(1, DEPTH))


def test_the_unpruned_model_has_maps(answerer, prompt):
    maps = score_maps(answerer, prompt, None, DEPTH, rope=True)
    assert all(np.isclose(one.scores.sum(), 1, atol=1e-4) for one in maps.values()), "a softmax over visual tokens"


ALL = [pytest.param(name, marks=() if name in representatives() else pytest.mark.full) for name in available()]


@pytest.mark.parametrize("name", ALL)
def test_scoring_changes_nothing_that_is_kept(answerer, prompt, name):
    method = get(name)
    plain = look(answerer, prompt, name)
    scored = look(answerer, prompt, scoring(method.schedule(), DEPTH, rope=True))
    kept = {stage.layer: stage.kept[0].tolist() for stage in scored.stages}
    for stage in plain.stages:
        assert kept[stage.layer] == stage.kept[0].tolist()
    assert scored.tokens_per_layer == plain.tokens_per_layer
