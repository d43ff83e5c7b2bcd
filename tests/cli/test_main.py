"""The command line as a whole: help, versions, streams, and what it loads."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import cli, sentence
from feathervlm.cli.main import app

COMMANDS = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_has_examples(command: list[str]) -> None:
    result = cli(*command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"feathervlm {' '.join(command)}".strip() in result.stdout


def test_version() -> None:
    assert re.fullmatch(r"feathervlm \d+\.\d+\.\d+\n", cli("--version").stdout)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("study", "--quick"), "matplotlib"),
        (("study", "--quick"), "jinja2"),
        (("diagnose",), "jinja2"),
        (("bench", "--plot", "scale.png"), "matplotlib"),
        (("app",), "gradio"),
    ],
)
def test_a_missing_extra_is_named(words: tuple[str, ...], missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    extra = "app" if words == ("app",) else "report"
    said = f"error: This needs {missing}, which is not installed; run pip install 'feathervlm[{extra}]'.\n"
    assert sentence(cli(*words)) == said


def process(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "feathervlm", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.full
def test_a_process_prints_json_alone(demo: Path) -> None:
    result = process(
        "run", "--model", demo, "--image", demo / "scene.png", "--prompt", "Where?", "--method", "feather",
        "--max-new-tokens", 2, "--repeats", 1, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert json.loads(result.stdout)["report"]["pruned"] is True


def test_a_process_without_network(demo: Path) -> None:
    result = process(
        "run", "--model", "no/such-model", "--image", demo / "scene.png", "--prompt", "Where?", "--method", "none",
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: 'no/such-model' [^\n]+\n", result.stderr), result.stderr
