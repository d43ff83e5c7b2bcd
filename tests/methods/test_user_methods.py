"""Methods of files and of other packages: how they are found, and what is wrong with them in one sentence."""

import importlib.metadata
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from feathervlm import methods
from feathervlm.core.errors import PruningError
from feathervlm.methods import base
from user_methods import EXAMPLE, unchanged_registry


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    with unchanged_registry():
        yield


@pytest.fixture
def column(tmp_path):
    path = tmp_path / "column.py"
    path.write_text(EXAMPLE)
    return path


def test_a_file_is_loaded_once(column):
    base.load(column)
    method = methods.get("with-column:keep=0.1")
    base.load(str(column))
    assert methods.get("with-column:keep=0.1") == method
    assert "with-column" in methods.available()
    assert os.environ[base.LOADED] == str(column)


def test_a_worker_process_loads_the_file_on_first_use(column, monkeypatch):
    monkeypatch.setenv(base.LOADED, str(column))
    monkeypatch.setattr(base, "_complete", False)
    assert str(methods.get("with-column:keep=0.1")) == "with-column:keep=0.1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "it defines no method; derive"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def", "SyntaxError"),
        (EXAMPLE.replace('"with-column"', '"fastv"'), "Two methods are called 'fastv'"),
        (EXAMPLE.replace("1 / 4", "-2") + "\nWithColumn()", "-2"),
    ],
)
def test_a_file_that_cannot_be_loaded_leaves_nothing(tmp_path, text, words):
    path, before = tmp_path / "mine.py", dict(base.REGISTRY)
    path.write_text(text)
    with pytest.raises(PruningError, match=words) as error:
        base.load(path)
    assert str(error.value).startswith(f"{path} cannot be loaded: ")
    assert before == base.REGISTRY
    assert base.LOADED not in os.environ
    assert not [name for name in sys.modules if name.startswith("feathervlm_mine")]


@pytest.mark.parametrize("name", ["missing.py", "mine.txt", ""])
def test_what_is_not_a_python_file_is_refused(tmp_path, name):
    (tmp_path / "mine.txt").write_text("x = 1")
    with pytest.raises(PruningError, match=r"is not a Python file; give the path of a \.py file"):
        base.load(tmp_path / name)


def plug(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    """Install a package with one module of methods, as far as look-up can tell."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    entry = importlib.metadata.EntryPoint(name, name, base.GROUP)
    entry = entry._for(SimpleNamespace(name=f"package-{name}"))
    monkeypatch.setattr(base, "plugins", lambda group: [entry])
    monkeypatch.setattr(base, "_complete", False)


def test_methods_of_other_packages_are_found(monkeypatch, tmp_path):
    plug(monkeypatch, tmp_path, "plugged", EXAMPLE)
    assert methods.get("with-column").keep == 0.25
    assert "with-column" in methods.available()


def test_a_broken_package_is_one_warning(monkeypatch, tmp_path):
    plug(monkeypatch, tmp_path, "broken", "raise RuntimeError('too old')")
    with pytest.warns(UserWarning, match=r"package-broken \(broken\): RuntimeError: too old; update or") as seen:
        methods.get("fastv")
    methods.get("feather")
    assert len(seen) == 1


def test_a_package_with_a_name_that_is_taken_is_an_error_each_time(monkeypatch, tmp_path):
    plug(monkeypatch, tmp_path, "clashing", EXAMPLE.replace('"with-column"', '"fastv"'))
    for _ in range(2):
        with pytest.raises(PruningError, match=r"Two methods are called 'fastv', .* rename one of them"):
            methods.get("feather")
