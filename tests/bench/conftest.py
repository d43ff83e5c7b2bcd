"""Presets of real classes and tiny dimensions, and rows that were never measured."""

import copy
from dataclasses import replace

import pytest
import torch

from feathervlm.bench import presets

TEXT = presets._llama(64, 96, 4, 4, 500, tied=True)
VISION = presets._clip(32, 3, 2)
AXES = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}


@pytest.fixture(autouse=True)
def minis(monkeypatch):
    """`mini`, `mini-next` and `mini-qwen` beside the others."""
    real = presets.PRESETS
    qwen = real["qwen2.5-vl-7b"]
    tower = {**qwen.vision, **TOWER, "fullatt_block_indexes": [1]}
    small = (
        replace(real["tiny"], name="mini", tokens=64, text=TEXT, vision=VISION),
        replace(real["llava-next-7b"], name="mini-next", tokens=1152, text=TEXT, vision=VISION),
        replace(qwen, name="mini-qwen", tokens=36, text={**TEXT, "rope_parameters": AXES}, vision=tower),
    )
    monkeypatch.setattr(presets, "PRESETS", {**real, **{preset.name: preset for preset in small}})


@pytest.fixture
def build():
    """(model, prompt) of a preset."""

    def made(name, tokens=None, text=12):
        preset = presets.get(name)
        tokens = tokens or preset.tokens
        torch.manual_seed(0)
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_config(preset.config(tokens), attn_implementation="sdpa").eval()
        return model, preset.prompt(tokens, text)

    return made


def even(value, reach=0.0):
    return {"median": value, "low": value - reach, "high": value + reach}


PLAIN = {
    "method": "unpruned",
    "tokens": 576,
    "text": 64,
    "batch": 1,
    "layers": 24,
    "stages": [],
    "average_tokens": 576.0,
    "seconds": {part: even(value) for part, value in
                {"encoder": 0.1, "selection": 0.0, "prefill": 0.9, "first_token": 1.0, "decode": 0.05}.items()},
    "ratio": {part: even(1.0, 0.03) for part in ("encoder", "prefill", "first_token", "decode", "answer")},
    "ideal": {"prefill": 1.0, "first_token": 1.0, "kv_bytes": 1.0},
    "gap": 0.0,
    "selection_share": None,
    "kv_bytes": 1000,
    "kv_bytes_ratio": 1.0,
    "peak_bytes": 2000,
    "peak_ratio": 1.0,
    "notes": [],
    "raw": {},
}  # fmt: skip


@pytest.fixture
def plain():
    """The row of an unpruned model with quartiles of 3 % around 1, to change at will."""
    return copy.deepcopy(PLAIN)


@pytest.fixture
def row():
    """The row of a method that halves everything, to change at will."""
    made = copy.deepcopy(PLAIN) | {
        "method": "fastv", "stages": [{"layer": 3, "tokens": 144.0}], "gap": 0.1, "kv_bytes_ratio": 0.4,
        "ideal": {"prefill": 0.4, "first_token": 0.46, "kv_bytes": 0.4}, "selection_share": even(0.01),
    }  # fmt: skip
    made["ratio"] |= {"prefill": even(0.5, 0.01), "first_token": even(0.55, 0.01), "decode": even(1.0, 0.01)}
    return made
