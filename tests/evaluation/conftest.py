"""Small local data sets, and a tiny random model that has a token for every choice."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

import family_directory
import local_sets
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.evaluation.tasks.jsonl import Jsonl

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


@pytest.fixture
def tiny_family(tmp_path, monkeypatch):
    return family_directory.maker(tmp_path, monkeypatch)


@pytest.fixture
def lines(tmp_path):
    """Questions from lines of JSON about two pictures, a.png and b.png."""
    Image.linear_gradient("L").resize((101, 67)).save(tmp_path / "a.png")
    Image.radial_gradient("L").resize((90, 140)).save(tmp_path / "b.png")

    def make(*rows):
        (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
        task = Jsonl(tmp_path / "mine.jsonl")
        return QuestionSet(task, task.questions(None))

    return make
