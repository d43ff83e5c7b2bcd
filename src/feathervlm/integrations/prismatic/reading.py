"""Reads what a conversion starts from: a run's config.json and checkpoint, and the weights of a vision encoder.

Tensors are mapped from disk rather than read, so that they take memory only while they are written. Knows which files
there are and what is put in front of names; knows not what the names mean.
"""

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.inference.loading import brief
from feathervlm.integrations.prismatic import names

CHECKPOINT = Path("checkpoints", "latest-checkpoint.pt")
TOWER_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)

FRONTS = ("visual.trunk.", "vision_model.")
"""What open_clip (around timm's) and transformers (around its own) put in front of a vision encoder's names."""
BESIDE = re.compile(r"(text\.|text_model\.|logit_scale$|logit_bias$|visual_projection\.|text_projection\b)")
"""What files of the whole of SigLIP or CLIP hold besides the vision encoder."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class TowerWeights:
    """The tensors of a vision encoder, and the names of those that LLaVA has no use for."""

    tensors: Tensors
    unused: tuple[str, ...]


def read_config(run: Path) -> dict[str, Any]:
    """A run's config.json.

    Raises:
        PruningError: if there is none.
    """
    path = run / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PruningError(
            f"{path} cannot be read ({brief(error)}); give the folder of a run of TRI-ML/prismatic-vlms, which holds "
            f"config.json and {CHECKPOINT}."
        ) from error
    if not isinstance(config, dict):
        raise PruningError(f"{path} is no JSON object; give a Prismatic run's own config.json.")
    return config


def read_checkpoint(run: Path) -> dict[str, Tensors]:
    """A run's tensors by part: projector, llm_backbone and, if it was trained, vision_backbone.

    Raises:
        PruningError: if the file is missing or damaged, or holds other parts.
    """
    path = run / CHECKPOINT
    document = _load_pickle(path)
    model = document.get("model")
    if not isinstance(model, Mapping) or not all(_are_tensors(part) for part in model.values()):
        raise PruningError(f"{path} has no tensors under 'model'; give a Prismatic run's own checkpoint.")
    # Some runs keep the optimizer's state in the same file; it is no part of the model.
    other = [str(key) for key in document if key not in ("model", "optimizer")]
    wrong = other + [f"model.{part}" for part in model if part not in (names.PROJECTOR, names.LLM, names.TOWER)]
    lacking = [part for part in (names.PROJECTOR, names.LLM) if part not in model]
    if wrong or lacking:
        found = [f"unknown {', '.join(wrong)}"] * bool(wrong) + [f"missing model.{', model.'.join(lacking)}"] * bool(
            lacking
        )
        raise PruningError(f"{path} holds other parts than a Prismatic model has: {'; '.join(found)}.")
    return {str(part): dict(tensors) for part, tensors in model.items()}


def own_tower(tensors: Tensors) -> TowerWeights:
    """The vision encoder that a checkpoint brings along.

    Raises:
        PruningError: if it is not a single one.
    """
    front = "featurizer."
    other = [name for name in tensors if not name.startswith(front)]
    if other:
        raise PruningError(
            f"The checkpoint's {names.TOWER} holds tensors that are not of one vision encoder's {front}*: unknown "
            f"{', '.join(other)}."
        )
    return _sorted({name.removeprefix(front): tensor for name, tensor in tensors.items()}, ())


def read_tower(path: Path) -> TowerWeights:
    """A vision encoder from a file, or from a directory with one, in the names of timm or transformers.

    Raises:
        PruningError: if there is no such file, or it cannot be read.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in TOWER_FILES if (path / name).is_file()]
        if not found:
            raise PruningError(f"--vision {path} holds none of {', '.join(TOWER_FILES)}; give the file itself.")
        file = found[0]
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                return _within(list(opened.keys()), opened.get_tensor)
        except (OSError, SafetensorError) as error:
            raise PruningError(f"--vision {file} cannot be read ({brief(error)}); get it again.") from error
    tensors = _load_pickle(file)
    if not _are_tensors(tensors):
        raise PruningError(f"--vision {file} holds other things than tensors; give a model's weights.")
    return _within(list(tensors), tensors.__getitem__)


def _within(found: list[str], read: Callable[[str], Tensor]) -> TowerWeights:
    """The vision encoder among the tensors of a file."""
    front = next((front for front in FRONTS if any(name.startswith(front) for name in found)), "")
    beside = tuple(name for name in found if front and BESIDE.match(name))
    return _sorted({name.removeprefix(front): read(name) for name in found if name not in beside}, beside)


def _sorted(tensors: Tensors, beside: tuple[str, ...]) -> TowerWeights:
    unused = tuple(name for name in tensors if name.startswith(names.UNUSED))
    return TowerWeights({name: tensor for name, tensor in tensors.items() if name not in unused}, unused + beside)


def _load_pickle(path: Path) -> dict[str, Any]:
    try:
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise PruningError(f"{path} cannot be read as a checkpoint ({brief(error)}); get it again.") from error
    if not isinstance(document, dict):
        raise PruningError(f"{path} holds no dictionary; give a checkpoint as its training wrote it.")
    return document


def _are_tensors(part: object) -> bool:
    return isinstance(part, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in part.items()
    )
