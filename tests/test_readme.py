"""The README's tables are those that the code and the committed results give."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

import feathervlm
from feathervlm import embedded
from feathervlm.embedded.assets import WEIGHTS
from feathervlm.embedded.tasks import sample
from feathervlm.inference.prompts import Prompt, prepare
from feathervlm.methods import base, lookup

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tables(monkeypatch):
    """The script that generates tables and pages, which imports from its own directory."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "generate_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date(tables):
    for where, names in tables.FILES.items():
        text = (ROOT / where).read_text()
        assert tables.render(text, names, where) == text


def test_files_that_the_readme_names_exist():
    for name in (
        "docs/kept.png",
        "docs/results/performance.md",
        "results/bench/overhead-cpu.json",
        "results/study/runs.json",
        "Makefile",
    ):
        assert (ROOT / name).exists()


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("README.md"))))
def test_the_code_of_the_readme_runs(number, tmp_path, monkeypatch):
    """Every block by itself, on the embedded model and a picture of its own."""
    monkeypatch.chdir(tmp_path)
    sample("locate", 0, 0)[0].image.save("photo.jpg")
    code = blocks("README.md")[number].replace("llava-hf/llava-1.5-7b-hf", str(WEIGHTS))
    exec(compile(code, "README.md", "exec"), {})
    assert (
        sorted(path.name for path in tmp_path.iterdir() if path.name != "photo.jpg")
        == [
            ["kept.png"],
            ["feather.json"],
        ][number]
    )


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_generated_pages_are_up_to_date(tables):
    for where, make in tables.PAGES.items():
        assert make() == (ROOT / where).read_text()


def test_the_guide_to_methods_works(monkeypatch):
    (code,) = blocks("docs/add-a-method.md")
    registry = dict(base.REGISTRY)
    for place in (base, lookup):
        monkeypatch.setattr(place, "REGISTRY", registry)
    module = types.ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", module)
    exec(compile(code, "guide", "exec"), module.__dict__)
    model, processor = embedded.load()
    scene, question = sample("locate", 0, 0)
    inputs = prepare(processor, [Prompt(question.text, (scene.image,))])
    with feathervlm.prune(model, "with-column:keep=0.2") as pruning:
        model.generate(**inputs, max_new_tokens=1)
    kept = pruning.report.grid()[0]
    assert kept[:, 0].all()
    assert int(kept.sum()) == 51
    assert lookup.get("with-column").solve(100, [(1, 16, 16)], 16).keep < 0.25
