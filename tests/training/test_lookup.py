"""The lookup is measured as the library measures it, from the same attention."""

import pytest
import torch

import feathervlm
from feathervlm import LastTokenAttention, Schedule, Stage, Top
from feathervlm.inference.prompts import Prompt, prepare
from training.build import Size, build_model, build_processor, to_pixels
from training.lookup import Lookup, box_cells, measure_lookup, run
from training.world.tasks import sample

SMALL = Size(layers=3, width=64, heads=2, hidden=64, tower_layers=1, tower_width=32, tower_hidden=32)


@pytest.fixture(scope="module")
def model():
    return build_model(SMALL, 0).eval()


@pytest.mark.parametrize("rope", [False, True])
def test_shares_are_the_scores_of_the_library(model, rope):
    scene, question = sample("locate", 0, 0)
    seen, _, _ = run(model, to_pixels([scene]), question.text)
    inputs = prepare(build_processor(SMALL), [Prompt(question.text, (scene.image,))])
    keep = Top(LastTokenAttention(rope=rope), keep=1.0)
    with feathervlm.prune(model, Schedule(Stage(1, keep), Stage(2, keep))) as pruning, torch.no_grad():
        model(**inputs)
    for layer, stage in enumerate(pruning.report.stages):
        scores = stage.scores[0].float()
        torch.testing.assert_close(seen[int(rope), layer], scores / scores.sum(), rtol=1e-3, atol=1e-6)


def test_words_that_are_exchanged_move_the_state(model):
    scene, _ = sample("locate", 0, 0)
    _, kinds, moved = run(model, to_pixels([scene]), "where is the small red circle ?")
    assert kinds == ["size", "colour", "shape"]
    assert (moved[0] == 0).all()
    assert (moved[1:] > 0).all()
    assert set(measure_lookup(model, 3).heeded) == set(kinds)


@pytest.mark.parametrize(("free", "begins"), [([0.1, 0.19, 0.4, 0.1], 2), ([0.1, 0.1], 2), ([0.2], 0)])
def test_the_lookup_begins_where_enough_attention_is_on_the_target(free, begins):
    assert Lookup(free, free, {}).begins == begins


def test_a_box_has_the_patches_with_their_middles_in_it():
    assert box_cells((12, 24, 36, 36), 12).nonzero()[0].tolist() == [2 * 16 + 1, 2 * 16 + 2]
    assert box_cells((1, 1, 4, 4), 12).nonzero()[0].tolist() == [0]
