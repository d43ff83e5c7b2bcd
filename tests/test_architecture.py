"""The house rules that a machine can check: one direction of imports, public names, docstrings that run."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import feathervlm

SOURCE = Path(feathervlm.__file__).parent
MODULES = [
    info.name for info in pkgutil.walk_packages([str(SOURCE)], "feathervlm.") if not info.name.endswith("__main__")
]

OPTIONAL = dict.fromkeys(
    ["feathervlm.integrations.lmms_eval.model", "feathervlm.integrations.lmms_eval.token_counts"], "lmms_eval"
)
"""Modules that need an extra, and what they import of it."""

FORBIDDEN = {
    "core": ("transformers", "feathervlm.methods", "feathervlm.engine", "feathervlm.families"),
    "methods": ("transformers", "feathervlm.engine", "feathervlm.families"),
    "engine": ("feathervlm.methods", "feathervlm.families"),
    "families": ("feathervlm.methods",),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_go_one_way(part):
    wrong = [
        (path.name, name)
        for path in (SOURCE / part).rglob("*.py")
        for name in imports(path)
        if name.startswith(FORBIDDEN[part])
    ]
    assert wrong == []


@pytest.mark.parametrize("banned", ["cache_position", "output_attentions=True"])
def test_what_transformers_dropped_or_what_is_slow_stays_out(banned):
    assert [path.name for path in SOURCE.rglob("*.py") if banned in path.read_text()] == []


def test_public_names():
    fixed = ["prune", "VisualLayout", "Schedule", "Stage", "Top", "Grid", "Random", "LastTokenAttention", "KNNDensity"]
    assert set(fixed) <= set(feathervlm.__all__)
    assert all(hasattr(feathervlm, name) for name in feathervlm.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_are_true(module):
    if module in OPTIONAL:
        pytest.importorskip(OPTIONAL[module], reason="an extra that is not installed")
    assert doctest.testmod(importlib.import_module(module)).failed == 0
