"""`feathervlm models`: every family, every refusal, one family in words; one sentence for a name that is none."""

import json

import pytest
from typer.testing import CliRunner, Result

from feathervlm.cli.main import app
from feathervlm.families import FAMILIES
from feathervlm.families.unsupported import UNSUPPORTED


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_models_lists_every_family_and_what_is_refused() -> None:
    shown = cli("models")
    assert shown.exit_code == 0
    for kind in (*FAMILIES, *UNSUPPORTED):
        assert kind in shown.stdout
    document = json.loads(cli("models", "--json").stdout)
    assert {kind for family in document["families"] for kind in family["model_types"]} == set(FAMILIES)
    assert document["refused"] == UNSUPPORTED


@pytest.mark.parametrize("name", ["qwen2_5_vl", "Qwen2.5-VL", "qwen2.5-vl"])
def test_one_family_in_words_and_as_json(name: str) -> None:
    assert "Qwen2_5_VLForConditionalGeneration" in cli("models", name).stdout
    document = json.loads(cli("models", name, "--json").stdout)
    assert document["model_types"] == ["qwen2_5_vl"]
    assert document["input"] == ["image", "video"]
    assert document["box_format"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("martian", "no model family 'martian'; `feathervlm models` lists all"),
        ("qwen3", "did you mean qwen3_5 or"),
        ("mllama", "mllama cannot be pruned: images enter by cross-attention"),
    ],
)
def test_models_refuses_in_one_sentence(name: str, said: str) -> None:
    refused = cli("models", name)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert said in refused.stderr
