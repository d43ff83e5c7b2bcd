"""The laws of the structure, each as a test: which package may import which, where what may be called, how things are
named and documented."""

import ast
import doctest
import importlib
import io
import pkgutil
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import feathervlm

SOURCE = Path(feathervlm.__file__).parent
OPTIONAL = {
    f"feathervlm.{place}.{name}": library
    for place, library, names in (
        ("integrations.lmms_eval", "lmms_eval", ("model", "token_counts")),
        (
            "integrations.vllm",
            "vllm",
            ("config", "counters", "encoder", "llava", "model", "processing", "qwen2_5_vl"),
        ),
        ("app", "gradio", ("look", "page", "slots", "wiring")),
    )
    for name in names
}
"""Modules that need an extra, and what they import of it."""

BELOW = {
    "utils": (),
    "core": (),
    "methods": ("core",),
    "engine": ("core",),
    "families": ("core", "engine"),
    "api": ("core", "methods", "engine", "families"),
    "embedded": ("core",),
}
BELOW["inference"] = (*BELOW, "embedded")
BELOW["evaluation"] = (*BELOW["inference"], "inference")
BELOW["diagnosis"] = (*BELOW["evaluation"], "evaluation")
BELOW["study"] = (*BELOW["diagnosis"], "diagnosis")
BELOW["bench"] = (*BELOW["inference"], "inference")
BELOW["app"] = (*BELOW["diagnosis"], "diagnosis")
BELOW["serving"] = (*BELOW["inference"], "inference")
BELOW["integrations"] = (*BELOW["evaluation"], "evaluation", "serving")
BELOW["cli"] = (*BELOW["study"], "study", "bench", "serving", "integrations", "app")
"""The packages that each may import; every one may import `utils`, which imports the errors of the core alone."""

CORE = (
    ("errors",),
    ("validation",),
    ("tensor_ops",),
    ("layout",),
    ("budget", "signals", "boxes", "cost"),
    ("candidates",),
    ("image_rows",),
    ("partition",),
    ("criteria",),
    ("selectors",),
    ("encoder", "mergers", "positions"),
    ("schedule",),
    ("scoring_pass", "run_stage"),
    ("solve", "spec"),
    ("",),
)
"""The modules of the core from the lowest to the highest; one imports only what stands lower."""

CALLS = {
    "generate": ("inference/", "bench/measure.py"),
    "from_pretrained": ("inference/loading.py", "embedded/model.py", "integrations/prismatic/"),
}
"""Where models may be asked and loaded."""

RIDDLES = (
    r"\bbehind\b", r"\bis told\b", r"\bare told\b", r"what is left of", r"those that are", r"\bis no (?:whole )?number",
    r"Knows (?:nothing|no|neither|how|what|which)\b", r"\bcards?\b", r"\bturnstile\b", r"\bpatients?\b", r"rehears",
)  # fmt: skip
"""Phrases that a reader has to decode; say it with a subject and a verb of the field."""


@cache
def modules():
    """Every module of the package: name -> (path, syntax tree)."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        if "tasks" in parts and "lmms_eval" in parts:
            continue  # lmms-eval reads these files by their path
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path, ast.parse(path.read_text())
    return found


def imports(name):
    """The modules of this package that a module imports, anywhere in its text."""
    for node in ast.walk(modules()[name][1]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("feathervlm"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("feathervlm"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


def room(name):
    return [*name.split("."), "", ""][1]


def relative(name):
    return modules()[name][0].relative_to(SOURCE).as_posix()


def test_imports_go_one_way():
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        if room(name) in BELOW
        for other in imports(name)
        if room(other) not in (room(name), "utils", *BELOW[room(name)]) and other != "feathervlm.core.errors"
    ]
    assert wrong == []


def test_the_core_is_in_order():
    rank = {part: number for number, level in enumerate(CORE) for part in level}
    wrong = []
    for name in modules():
        if room(name) != "core":
            continue
        part = [*name.split("."), "", ""][2]
        assert part in rank, f"{name} has no place in CORE"
        for other in imports(name):
            lower = [*other.split("."), "", ""][2]
            if lower != part and rank[lower] >= rank[part]:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_no_imports_go_in_a_circle():
    graph = {name: {other for other in imports(name) if other != name} for name in modules()}
    index, low, stack, circles = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                circles.append(part)

    for name in graph:
        if name not in index:
            visit(name)
    assert circles == []


def uses(library):
    found = set()
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )  # fmt: skip
            if any(one.split(".")[0] == library for one in names):
                found.add(relative(name))
    return found


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("typer", ("cli/",)),
        ("rich", ("cli/", "utils/progress.py")),
        ("matplotlib", ("bench/", "diagnosis/", "study/", "evaluation/", "utils/plotting.py")),
        ("jinja2", ("bench/", "diagnosis/", "study/", "evaluation/", "utils/templates.py")),
        ("pydantic", ("evaluation/store.py", "evaluation/tasks/", "utils/schema.py")),
        ("gradio", ("app/look.py", "app/page.py", "app/slots.py", "app/wiring.py", "app/server.py")),
        ("fastapi", ("app/server.py",)),
        ("uvicorn", ("app/server.py",)),
        ("subprocess", ("utils/provenance.py",)),
        ("platform", ("utils/provenance.py",)),
        ("vllm", ("integrations/vllm/",)),
    ],
)
def test_libraries_are_used_where_they_belong(library, allowed):
    assert [path for path in sorted(uses(library)) if not path.startswith(allowed or ("-",))] == []


def test_versions_are_collected_in_one_place():
    wrong = [path for path in sorted(uses("importlib")) if "metadata" in (SOURCE / path).read_text()]
    assert [path for path in wrong if path not in ("__init__.py", "utils/provenance.py", "methods/base.py")] == []


@pytest.mark.parametrize(
    "arguments", [(), ("--help",), ("--version",), ("methods",), ("models",), ("run", "--help"), ("app", "--help")]
)
def test_listing_and_help_load_no_framework(arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['feathervlm', *{arguments!r}]\n"
        "import feathervlm\n"
        "if sys.argv[1:]:\n"
        "    from feathervlm.cli.main import main\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "slow = ('torch', 'transformers', 'matplotlib', 'jinja2', 'gradio')\n"
        "print('LOADED', [name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("call", CALLS)
def test_models_are_loaded_and_asked_in_one_place(call):
    wrong = [
        f"{relative(name)}:{node.lineno}"
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == call
        if not relative(name).startswith(CALLS[call])
    ]
    assert wrong == []


def code_words(path):
    """The names and strings of a file, without comments and docstrings."""
    tree = ast.parse(path.read_text())
    docs = {
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NAME or (token.type == tokenize.STRING and token.start[0] not in docs):
            yield token.string.lower(), token.start[0]


def test_the_engine_knows_no_model():
    from feathervlm.families import FAMILIES

    names = {"model_type", *FAMILIES, *(kind.split("_")[0] for kind in FAMILIES)} - {"fast", "video", "perception"}
    wrong = [
        f"{path.relative_to(SOURCE)}:{line} {word}"
        for path in sorted((SOURCE / "engine").rglob("*.py"))
        for word, line in code_words(path)
        if names & set(re.findall(r"[a-z0-9_]+", word))
    ]
    assert wrong == []


def test_a_method_needs_the_core_and_its_base():
    allowed = {"feathervlm.core", "feathervlm.methods.base", "feathervlm.methods.lookup"}
    apart = {"feathervlm.methods", *(f"feathervlm.methods.{name}" for name in ("base", "describe", "lookup"))}
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        if room(name) == "methods" and name not in apart
        for other in imports(name)
        if other not in allowed
    ]
    assert wrong == []


def test_signals_are_told_apart_by_their_probes_only():
    from feathervlm.core import scoring_pass, signals

    kinds = {
        name
        for module in (signals, scoring_pass)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, signals.Signal)
    }
    allowed = ("core/signals/", "core/scoring_pass.py", "engine/probes/", "engine/vision/probe.py")
    wrong = []
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                tested = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                if tested & kinds and not relative(name).startswith(allowed):
                    wrong.append(f"{relative(name)}:{node.lineno} {sorted(tested & kinds)}")
    assert wrong == []


def test_a_class_name_means_one_thing():
    found = defaultdict(set)
    for name, (_, tree) in modules().items():
        if room(name) == "families" or relative(name) == "bench/presets.py":
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(relative(name))
    assert {name: sorted(places) for name, places in found.items() if len(places) > 1} == {}


def test_public_names():
    fixed = ["prune", "VisualLayout", "Schedule", "Stage", "Top", "Grid", "Random", "LastTokenAttention", "KNNDensity"]
    assert set(fixed) <= set(feathervlm.__all__)
    assert all(hasattr(feathervlm, name) for name in feathervlm.__all__)
    assert feathervlm.__version__.count(".") == 2
    assert (SOURCE / "py.typed").exists()


def test_public_methods_are_documented_once():
    """A method has a docstring, or overrides one that has."""
    wrong = []
    for name in modules():
        if name in OPTIONAL or name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        for kind in vars(module).values():
            if not isinstance(kind, type) or kind.__module__ != name or kind.__name__.startswith("_"):
                continue
            for member, value in vars(kind).items():
                function = getattr(value, "fget", None) or getattr(value, "func", None) or value
                function = getattr(function, "__func__", function)
                if member.startswith("_") or not callable(function) or not hasattr(function, "__code__"):
                    continue
                if not any(getattr(vars(base).get(member), "__doc__", None) for base in kind.__mro__):
                    wrong.append(f"{name}.{kind.__name__}.{member}")
    assert wrong == []


@pytest.mark.parametrize("banned", ["cache_position", "output_attentions=True"])
def test_what_transformers_dropped_or_what_is_slow_stays_out(banned):
    assert [path.name for path in SOURCE.rglob("*.py") if banned in path.read_text()] == []


def test_texts_are_plain():
    root = SOURCE.parents[1]
    docs = [path for ending in ("md", "ipynb") for path in (root / "docs").rglob(f"*.{ending}")]
    texts = [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.j2"), *docs, *root.glob("*.md")]
    wrong = [
        f"{path.relative_to(root)}:{number} {found.group()!r}"
        for path in sorted(texts)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := re.search("|".join(RIDDLES), line))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module", [info.name for info in pkgutil.walk_packages([str(SOURCE)], "feathervlm.") if "__main__" not in info.name]
)
def test_examples_in_docstrings_are_true(module):
    if module in OPTIONAL:
        pytest.importorskip(OPTIONAL[module], reason="an extra that is not installed")
    assert doctest.testmod(importlib.import_module(module)).failed == 0
