"""`diagnose` on methods whose tokens wait, are frozen, or leave the caches only."""

import numpy as np
import pytest
from PIL import Image

from feathervlm import embedded
from feathervlm.diagnosis.run import diagnose


@pytest.fixture(scope="module")
def options():
    model, processor = embedded.load()
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(2)]
    return {"model": model, "processor": processor, "images": pictures}


@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("reroute", "wait for the next stage"),
        ("swiftvlm", "wait for the next stage"),
        ("late-injection", "wait for the next stage"),
        ("shortv", "are frozen and stay readable"),
        ("feather:leave=freeze", "are frozen and stay readable"),
        ("skip-kv", None),
    ],
)
def test_a_mode_is_named_and_raises_no_false_alarm(method, held, options):
    found = diagnose(method, **options).findings
    assert "inert" not in {one.kind for one in found}
    assert "blind" not in {one.kind for one in found}
    notes = [one.text for one in found if one.kind == "held"]
    assert bool(notes) == (held is not None)
    assert all(held in note for note in notes)
