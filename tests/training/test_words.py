"""Before any question is asked, visual tokens say what their patches show as the language model does."""

import numpy as np
import pytest
import torch

from training import align, text, words
from training.build import BOS, Size, build_model, to_pixels
from training.labels import EDGES, REACH, shown
from training.world.questions import BIN, LOCATIONS
from training.world.scenes import draw

SMALL = Size(layers=3, width=64, heads=2, hidden=64, tower_layers=1, tower_width=32, tower_hidden=32)
PATCH, LAYERS = 12, 2


@pytest.fixture(scope="module")
def model():
    return build_model(SMALL, 0).eval()


def state_after(model, words_):
    """The state of the last token, by the stock decoder."""
    ids = torch.tensor([[BOS, *text.encode(words_)]])
    with torch.no_grad():
        return model.model.language_model(ids, output_hidden_states=True).hidden_states[LAYERS][0, -1]


def test_a_target_is_the_state_at_the_end_of_a_description(model):
    scene = draw(np.random.default_rng(4))
    targets, on = words.patch_states(scene, model.model.language_model, LAYERS, PATCH)
    owner = shown(scene, PATCH)
    assert targets.shape == (256, 64)
    assert on.tolist() == (owner >= 0).tolist()
    empty = state_after(model, f"the background is {scene.background}")
    torch.testing.assert_close(targets[~on], empty.expand(int((~on).sum()), -1), atol=1e-3, rtol=1e-3)
    known = model.model.language_model.embed_tokens.weight.detach()
    for cell in on.nonzero()[::7, 0].tolist():
        item = scene.items[owner[cell]]
        y, x = divmod(cell, 16)
        first, last = item.box[:2], (item.box[2] - 1, item.box[3] - 1)
        near = [
            -REACH <= item.box[role] - ((x, y, x, y)[role] * PATCH + PATCH / 2) < REACH for role in range(len(EDGES))
        ]
        digit = "" if item.digit is None else f" with digit {item.digit}"
        left = f" {LOCATIONS[first[0] // BIN]}" if near[0] else ""
        expected = state_after(model, f"a {item.size} {item.colour} {item.shape}{digit} at{left}")
        for role, edge in enumerate((first[1], *last), 1):
            if near[role]:
                word = known[text.INDEX[LOCATIONS[edge // BIN]]]
                expected = expected + words.EDGE_SCALE * word.roll(words.ROLE * role)
        torch.testing.assert_close(targets[cell], expected, atol=1e-3, rtol=1e-3)


def test_the_projector_is_fitted_to_the_targets(model, monkeypatch):
    monkeypatch.setattr(words, "EDGE_SCALE", 0.0)
    scenes = [draw(np.random.default_rng([8, i])) for i in range(4)]
    targets = torch.cat([words.patch_states(scene, model.model.language_model, LAYERS, PATCH)[0] for scene in scenes])
    words.begin_with_words(model, 0, LAYERS, scenes=16, steps=150)
    with torch.no_grad():
        found = model.model.multi_modal_projector(align.see(model, to_pixels(scenes))).flatten(0, 1)
    # The encoder is not trained, so its features tell some of it, and nothing about edges.
    assert (found - targets).square().mean() < 0.9 * targets.var(0).mean()
