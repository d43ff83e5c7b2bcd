"""Stage 4: layers that contribute little are taken out, first those before the lookup, so that the lookup comes early.

Everything is measured without pruning, on held-out images: the loss without some layers, and the first layer that looks
at the target (see `lookup`). The layers that stage 3 leaves frozen stay. The choice follows a fixed rule,
`choose`, and stage 5 heals the rest.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from training.align import Learner, held_out, measure
from training.build import build_model, with_layers
from training.lookup import measure_lookup
from training.loop import save
from training.recipe import Recipe

BATCHES = 8
"""Held-out batches on which layers are judged."""
QUESTIONS = 100
"""Questions with which the lookup is measured."""


@dataclass(frozen=True)
class Choice:
    """Which layers are taken out.

    Attributes:
        layers: Their numbers.
        begins: First layer that looks at the target once they are out, counted in the layers that stay.
        depth: Number of layers that stay.
        early: Whether the lookup begins as early as the recipe asks for.
        losses: Held-out loss by layers left out, as measured on the way; "none" is the loss of the whole model.
    """

    layers: tuple[int, ...]
    begins: int
    depth: int
    early: bool
    losses: dict[str, float]


def choose(depth: int, begins: int, loss: Callable[[tuple[int, ...]], float], recipe: Recipe) -> Choice:
    """Return the layers to take out.

    As few layers before the lookup are taken out as bring it to `recipe.earliest` of the depth, or as many as are
    allowed if that is not enough; among the sets of that number, the one without which the loss is lowest. Then layers
    are taken out one by one as long as one raises the loss by less than `recipe.useless`.

    Args:
        depth: Number of layers.
        begins: First layer that looks at the target.
        loss: Returns the held-out loss without some layers.
        recipe: Says how many layers stay and how early the lookup should begin.
    """
    losses = {"none": loss(())}

    def known(layers: tuple[int, ...]) -> float:
        name = " ".join(map(str, layers))
        if name not in losses:
            losses[name] = loss(layers)
        return losses[name]

    movable = range(recipe.frozen, min(begins, depth))
    most = min(depth - recipe.least_layers, len(movable))
    number = next((n for n in range(most) if begins - n <= recipe.earliest * (depth - n)), most)
    out = min(combinations(movable, number), key=known) if number else ()
    now = known(out) if out else losses["none"]
    while depth - len(out) > recipe.least_layers:
        others = [tuple(sorted({*out, layer})) for layer in range(recipe.frozen, depth) if layer not in out]
        best = min(others, key=known)
        if known(best) - now >= recipe.useless * losses["none"]:
            break
        out, now = best, known(best)
    left = depth - len(out)
    first = begins - sum(layer < begins for layer in out)
    return Choice(out, first, left, first <= recipe.earliest * left, losses)


def cut(folder: Path, recipe: Recipe, seed: int) -> Choice:
    """Take layers out of the aligned model; write `cut.pt` and `cut.json`."""
    learner = Learner(build_model(recipe.size, seed))
    state = torch.load(folder / "align.pt", weights_only=True, map_location="cpu")
    learner.load_state_dict(state["module"])
    batches = held_out(BATCHES, recipe.size.patch)
    lookup = measure_lookup(learner.model, QUESTIONS)
    depth = recipe.size.layers
    choice = choose(depth, lookup.begins, lambda layers: measure(learner, batches, layers)["loss"], recipe)
    kept = [layer for layer in range(depth) if layer not in choice.layers]
    shorter = Learner(build_model(with_layers(recipe.size, len(kept)), seed))
    shorter.load_state_dict(without_layers(state["module"], kept))
    (folder / "cut.json").write_text(json.dumps({**asdict(choice), "lookup": asdict(lookup)}, indent=2) + "\n")
    save(folder / "cut.pt", {"module": shorter.state_dict(), "step": state["step"], "run": state["run"]})
    return choice


def measure_layers(learner: Learner, recipe: Recipe) -> dict[str, Any]:
    """Return the lookup, and the held-out loss and metrics of the whole model and without each layer."""
    batches = held_out(BATCHES, recipe.size.patch)
    depth = learner.model.config.text_config.num_hidden_layers
    return {
        "lookup": asdict(measure_lookup(learner.model, QUESTIONS)),
        "whole": measure(learner, batches),
        "without": [measure(learner, batches, (layer,)) for layer in range(depth)],
    }


def without_layers(state: dict[str, torch.Tensor], kept: list[int]) -> dict[str, torch.Tensor]:
    """Return the weights with the layers that stay, numbered anew."""
    mark = "language_model.layers."
    result = {}
    for name, value in state.items():
        before, found, after = name.partition(mark)
        number, _, rest = after.partition(".")
        if not found:
            result[name] = value
        elif int(number) in kept:
            result[f"{before}{mark}{kept.index(int(number))}.{rest}"] = value
    return result
