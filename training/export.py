"""Writes a checkpoint as a model directory that `from_pretrained` loads: bfloat16 weights, config, processor."""

import os
import shutil
from pathlib import Path

import torch
import typer
from transformers import GenerationConfig

from training.build import BOS, EOS, PAD, Size, build_model, build_processor, layers_in, with_layers


def export(checkpoint: Path, size: Size, target: Path) -> int:
    """Write the weights of a checkpoint of stage 3, 4 or 5 and return its step.

    `target` is replaced as a whole, except for its README.

    Raises:
        typer.BadParameter: If `target` exists and is not a model directory.
    """
    present = {path.name for path in target.iterdir()} if target.exists() else set()
    if present - {"README.md"} and "config.json" not in present:
        raise typer.BadParameter(f"{target} is not a model directory; choose another --target")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    weights = {name.removeprefix("model."): value for name, value in state["module"].items() if name[:6] == "model."}
    model = build_model(with_layers(size, layers_in(weights)), 0)
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    draft, old = (target.with_name(f".{target.name}.{word}") for word in ("draft", "old"))
    for path in (draft, old):
        shutil.rmtree(path, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(draft)
    build_processor(size).save_pretrained(draft)
    if (target / "README.md").exists():
        shutil.copy(target / "README.md", draft)
    if target.exists():
        os.replace(target, old)
    os.replace(draft, target)
    shutil.rmtree(old, ignore_errors=True)
    return int(state["step"])
