"""Settings for all tests, and a tiny model.

One thread, for tiny models lose more by sharing work than they gain. Few examples of every property, and more of them
with `--hypothesis-profile full`.
"""

import gc
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, before torch reads it here

import pytest
import torch
from hypothesis import HealthCheck, settings

import method_cases

EXAMPLES = Path(__file__).parents[1] / "examples"

torch.set_num_threads(1)
for profile, examples in {"gate": 25, "full": 150}.items():
    settings.register_profile(
        profile, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("gate")


def pytest_configure(config: pytest.Config) -> None:
    """Do not collect what will not run."""
    method_cases.GATE_ONLY = config.option.markexpr == "not full"


def pytest_collection_finish() -> None:
    """Keep what is imported out of garbage collection, which would visit it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with random weights, four layers and 8 x 8 visual tokens, its processor, and scene.png."""
    spec = importlib.util.spec_from_file_location("make_demo_model", EXAMPLES / "make_demo_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    directory = tmp_path_factory.mktemp("demo")
    module.make(directory, tiny=True)
    return directory
