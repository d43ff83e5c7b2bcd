"""`feathervlm serve`: the command for vLLM, and what is refused before anything starts."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from command_line import cli, sentence

FEATHER = "before-llm:method=(feather:layers=4+9,fixed=true)"


def printed(*arguments: object) -> list[str]:
    result = cli("serve", "--engine", "vllm", "--print", *arguments)
    assert result.exit_code == 0, result.output
    return shlex.split(result.stdout)


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_vllm_gets_the_architecture_the_method_and_what_follows_the_dashes() -> None:
    words = printed("--method", FEATHER, "--per-request", "--port", 8123, "--", "--tensor-parallel-size", 2)
    assert words[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert json.loads(after(words, "--hf-overrides")) == {"architectures": ["FeathervlmLlava"]}
    assert json.loads(after(words, "--mm-processor-kwargs")) == {"feathervlm": FEATHER}
    assert after(words, "--served-model-name") == "embedded"
    assert (after(words, "--host"), after(words, "--port")) == ("127.0.0.1", "8123")
    assert "--trust-request-mm-kwargs" in words
    assert words[-2:] == ["--tensor-parallel-size", "2"]


def test_unpruned_is_a_method_and_a_type_is_passed_on(demo: Path) -> None:
    words = printed("--model", demo, "--method", "none", "--dtype", "float32")
    assert "--mm-processor-kwargs" not in words
    assert "--trust-request-mm-kwargs" not in words
    assert after(words, "--dtype") == "float32"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--engine", "sglang"), "neither transformers nor vllm"),
        (("--print",), "add --engine vllm"),
        (("--", "--enforce-eager"), "add --engine vllm"),
        (("--engine", "vllm", "--print", "--method", "feather"), "write before-llm:method=(feather:fixed=true)"),
        (("--engine", "vllm", "--print", "--method", "before-llm:method=(feather)"), "depends on the picture"),
        (("--engine", "vllm", "--print", "--method", "fastervlm:encoder_layer=9"), "layer"),
        (("--engine", "vllm", "--print", "--method", "nonsense"), "There is no method"),
        (("--engine", "vllm", "--print", "--model", "no/such/model"), "no model directory"),
        (("--engine", "vllm", "--print", "--", "--hf-overrides={}"), "sets --hf-overrides itself"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(arguments: tuple[str, ...], reason: str) -> None:
    said = sentence(cli("serve", *arguments))
    assert any(part in said for part in reason.split("|"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "pip install 'feathervlm[serve]'" in sentence(cli("serve"))
    assert "pip install 'feathervlm[vllm]'" in sentence(cli("serve", "--engine", "vllm"))


def test_a_plugin_list_without_this_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert "add feathervlm to it" in sentence(cli("serve", "--engine", "vllm", "--print"))
