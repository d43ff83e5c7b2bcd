"""Layers are taken out by a fixed rule, from held-out losses of the unpruned model alone."""

import pytest

from training.cut import choose, without_layers
from training.recipe import EMBEDDED

DEPTH = 14


def loss_of(worth):
    """The loss of a model whose layers each lower it by their worth."""
    return lambda layers: 1 + sum(worth[layer] for layer in layers)


def test_nothing_is_taken_out_if_the_lookup_is_early_and_every_layer_matters():
    choice = choose(DEPTH, 5, loss_of([0.1] * DEPTH), EMBEDDED)
    assert (choice.layers, choice.begins, choice.depth, choice.early) == ((), 5, DEPTH, True)


def test_the_cheapest_layers_before_the_lookup_are_taken_out():
    worth = [0.1] * DEPTH
    worth[3], worth[5], worth[9] = 0.03, 0.04, 0.025
    # The lookup at layer 6 of 14 is at 43 %; without one layer before it, it is at 5 of 13, 38 %.
    choice = choose(DEPTH, 6, loss_of(worth), EMBEDDED)
    assert (choice.layers, choice.begins, choice.depth, choice.early) == ((3,), 5, 13, True)
    assert choice.losses["none"] == 1


def test_frozen_layers_stay():
    worth = [0.0, 0.0, *[0.1] * (DEPTH - 2)]
    assert choose(DEPTH, 6, loss_of(worth), EMBEDDED).layers[0] >= EMBEDDED.frozen


def test_useless_layers_are_taken_out_but_enough_stay():
    worth = [0.1] * DEPTH
    worth[8] = worth[10] = worth[12] = 0.001
    choice = choose(DEPTH, 4, loss_of(worth), EMBEDDED)
    assert choice.depth == EMBEDDED.least_layers
    assert set(choice.layers) < {8, 10, 12}
    assert choice.begins == 4


def test_a_lookup_that_stays_late_is_reported():
    choice = choose(DEPTH, 9, loss_of([0.1] * DEPTH), EMBEDDED)
    assert (choice.depth, choice.begins, choice.early) == (EMBEDDED.least_layers, 7, False)


def test_a_model_that_never_looks_is_reported():
    assert not choose(DEPTH, DEPTH, loss_of([0.1] * DEPTH), EMBEDDED).early


def test_layers_are_numbered_anew():
    names = [f"model.language_model.layers.{layer}.mlp.weight" for layer in range(12)]
    state = dict.fromkeys([*names, "model.lm_head.weight"])
    state = {name: name for name in state}
    kept = [0, 1, 4, 11]
    found = without_layers(state, kept)
    assert found == {
        **{f"model.language_model.layers.{new}.mlp.weight": names[old] for new, old in enumerate(kept)},
        "model.lm_head.weight": "model.lm_head.weight",
    }


@pytest.mark.parametrize("begins", range(2, DEPTH + 1))
def test_the_lookup_is_counted_in_the_layers_that_stay(begins):
    choice = choose(DEPTH, begins, loss_of([0.05] * DEPTH), EMBEDDED)
    assert choice.begins == begins - sum(layer < begins for layer in choice.layers)
    assert choice.early == (choice.begins <= EMBEDDED.earliest * choice.depth)
