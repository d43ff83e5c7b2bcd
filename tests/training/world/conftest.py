"""Scenes that several tests share."""

import numpy as np
import pytest

from training.world.scenes import CLUTTERED, SEEN, UNSEEN, Scene, arrange, draw


@pytest.fixture(scope="session")
def worlds():
    return {"seen": SEEN, "cluttered": CLUTTERED, "unseen": UNSEEN}


@pytest.fixture(scope="session")
def drawn(worlds):
    """Drawn scenes of each world."""
    return {name: [draw(np.random.default_rng([5, i]), world) for i in range(12)] for name, world in worlds.items()}


@pytest.fixture(scope="session")
def arranged():
    """Ordinary scenes without pixels, which take less time."""
    nothing = np.empty((0, 0, 3), np.uint8), np.empty((0, 0), np.int16)
    pairs = [arrange(np.random.default_rng([6, i])) for i in range(100)]
    return [Scene(tuple(items), background, *nothing) for background, items in pairs]
