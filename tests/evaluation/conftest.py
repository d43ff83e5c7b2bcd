"""Small local data sets, and a tiny random model that has a token for every choice."""

import importlib.util
from pathlib import Path

import pytest

import local_sets

EXAMPLE = Path(__file__).parents[2] / "examples/make_demo_model.py"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_sets.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLaVA of the examples, with a tokenizer that has seen the choices; it stops at no token."""
    spec = importlib.util.spec_from_file_location("demo_model_with_choices", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SENTENCES += ["True", "False", "Yes", "No"] * 20
    directory = tmp_path_factory.mktemp("tiny")
    module.make(directory, tiny=True)
    return directory
