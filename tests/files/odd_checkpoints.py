"""Model directories whose weights are no numbers that a model can work with."""

import shutil

import torch
from safetensors.torch import load_file, save_file

NAME = "k_proj.weight"
BROKEN = {
    "nan": lambda weight: weight.index_fill(0, torch.tensor([0]), float("nan")),
    "inf": lambda weight: weight.index_fill(1, torch.tensor([3]), float("-inf")),
    "int8": lambda weight: weight.to(torch.int8),
    "int64": lambda weight: weight.to(torch.int64),
    "bool": lambda weight: weight.to(torch.bool),
}


def broken(model, target, kind):
    """A copy of a model directory in which one weight is broken; the name of the weight."""
    shutil.copytree(model, target)
    weights = load_file(target / "model.safetensors")
    name = next(name for name in weights if name.endswith(NAME))
    save_file(weights | {name: BROKEN[kind](weights[name])}, target / "model.safetensors", {"format": "pt"})
    return name


FILES = {
    ("config.json", "null"): b"null",
    ("config.json", "deep"): b"[" * 30000,
    ("generation_config.json", "list"): b"[]",
    ("processor_config.json", "number"): b"7",
    ("tokenizer.json", "empty object"): b"{}",
    ("tokenizer_config.json", "null"): b"null",
    ("chat_template.jinja", "cut"): b"{% for message in messages %}",
    ("model.safetensors", "words"): b"hello",
}
"""Contents of files of a model directory that transformers runs into."""
