"""The documentation site: most of what `make docs` refuses is found here without MkDocs; links work on GitHub, too."""

import ast
import importlib
import inspect
import json
import posixpath
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import feathervlm
from feathervlm.methods.base import REGISTRY

ROOT = Path(__file__).parent.parent
PUBLIC = ("feathervlm", "feathervlm.core", "feathervlm.core.signals", "feathervlm.methods", "feathervlm.embedded")
PUBLIC += ("feathervlm.bench", "feathervlm.study", "feathervlm.integrations.prismatic")
"""Packages whose `__all__` the reference has to cover."""


def script(name):
    """A module of scripts/, which imports from its own directory."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "scripts"))


hooks = script("site_hooks")
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def pages():
    """Path in the repository -> Markdown, for every page of the site."""
    paths = [*(ROOT / "docs").rglob("*.md"), *(ROOT / path for path in hooks.OUTSIDE if path.endswith(".md"))]
    found = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    for path in NOTEBOOKS:
        found[path.relative_to(ROOT).as_posix()] = hooks.notebook_page(json.loads(path.read_text()), path.stem)[0]
    return found


PAGES = pages()


class Config(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name functions of MkDocs."""


Config.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def leaves(nav):
    for entry in nav:
        for value in entry.values():
            yield from leaves(value) if isinstance(value, list) else [value]


def without_code(text):
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title).lower()).replace(" ", "-") for title in titles}


def test_the_navigation_has_every_page_once():
    nav = list(leaves(yaml.load((ROOT / "mkdocs.yml").read_text(), Config)["nav"]))
    assert sorted(nav) == sorted(map(hooks.site_path, PAGES))


@pytest.mark.parametrize("path", PAGES)
def test_links_work_on_github_and_on_the_site(path):
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", without_code(PAGES[path])):
        if "://" in target or (path.endswith(".ipynb") and target.endswith(".jpg")):  # an output of the notebook
            continue
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
        if not (ROOT / place).is_file() or hooks.site_path(place) is None:
            broken.append(f"{target} is no file of the site; add it to OUTSIDE in scripts/site_hooks.py")
        elif anchor and anchor not in anchors(PAGES[place]):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("README.md", "[a](docs/methods.md)", "[a](methods.md)"),
        ("README.md", "![a](docs/kept.png)", "![a](kept.png)"),
        ("README.md", "[a](docs/notebooks/add-a-method.ipynb)", "[a](notebooks/add-a-method.md)"),
        ("docs/results/seeds.md", "[a](study.md#b)", "[a](study.md#b)"),
        ("docs/results/seeds.md", "[a](../../README.md#use)", "[a](../index.md#use)"),
        ("docs/notebooks/x.ipynb", "[a](../methods.md)", "[a](../methods.md)"),
        ("tests/README.md", "[a](../docs/faq.md), [b](https://x.org/docs/faq.md)", "[a](faq.md), [b](https://x.org/docs/faq.md)"),
        ("src/feathervlm/embedded/weights/README.md", "[a](../../../../CHANGELOG.md)", "[a](changelog.md)"),
        ("docs/faq.md", "[a](../Makefile)", "[a](../Makefile)"),
    ],
)  # fmt: skip
def test_links_are_those_of_the_site(page, link, on_the_site):
    assert hooks.relink(link, page) == on_the_site


@pytest.mark.parametrize("path", PAGES)
def test_lists_begin_after_an_empty_line(path):
    """Without one, GitHub shows a list and the site a paragraph."""
    item = re.compile(r"\s*([-*]|\d+\.) ")
    lines = without_code(PAGES[path]).splitlines()
    wrong = [
        line
        for before, line in pairwise(lines)
        if item.match(line) and before.strip() and not item.match(before) and not before.startswith(("  ", "#", "<!--"))
    ]
    assert wrong == []


def documented():
    """The names on the pages of the reference, and what they stand for."""
    found = {}
    for path, text in PAGES.items():
        if path.startswith("docs/reference/"):
            for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
                module, _, attribute = name.rpartition(".")
                found[name] = getattr(importlib.import_module(module), attribute)
    return found


def test_the_reference_has_every_public_name():
    names = documented()
    missing = []
    for package in PUBLIC:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value) and not isinstance(value, str) and f"{package}.{name}" not in names:
                missing += [f"{package}.{name}"] * all(value is not other for other in names.values())
    methods = [kind for kind in REGISTRY.values() if kind.__module__.startswith("feathervlm.")]
    missing += [kind.__name__ for kind in methods if kind not in names.values()]
    assert missing == []


def test_public_names_are_documented():
    """A dataclass without a docstring gets its signature as one."""
    kinds = {name: value for name, value in documented().items() if inspect.isclass(value) or inspect.isfunction(value)}
    texts = {name: vars(value).get("__doc__", value.__doc__) or "" for name, value in kinds.items()}
    assert [name for name, text in texts.items() if not text or text.startswith(f"{kinds[name].__name__}(")] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_hold_nothing_of_a_machine(path):
    text = path.read_text()
    assert len(text) < 100_000
    found = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", [])]
    assert found, "the outputs are not stored; run scripts/run_notebooks.py"
    assert all(output["output_type"] in ("stream", "execute_result", "display_data") for output in found)
    written = json.dumps([{**output, "data": {**output.get("data", {}), "image/jpeg": ""}} for output in found])
    assert re.findall(r"(?:[\w.]*/){2,}|0x[0-9a-f]{6,}|stderr", written) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_what_there_is(path):
    """What of a notebook the gate checks without running it."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for node in ast.walk(ast.parse("\n".join("".join(cell["source"]) for cell in cells))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_print_what_is_stored(path, monkeypatch):
    import nbformat

    runner = script("run_notebooks")
    monkeypatch.setenv("PYTHONPATH", str(Path(feathervlm.__file__).parents[1]), prepend=":")
    stored, found = nbformat.read(path, as_version=4), runner.run(path)
    assert runner.outputs(found) == runner.outputs(stored)


@pytest.mark.full
def test_the_figure_shows_a_forward_as_it_is(monkeypatch):
    figure = script("forward_figure")
    stored = json.loads((ROOT / "results/embedded/forward.json").read_text())
    assert {**figure.record(), "provenance": stored["provenance"]} == stored
