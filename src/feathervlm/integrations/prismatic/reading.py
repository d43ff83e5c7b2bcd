"""Reads the input of a conversion: a run's config.json and checkpoint, and the weights of a vision encoder.

Tensors are mapped from disk rather than read, so that they take memory only while they are written.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.integrations.prismatic import names
from feathervlm.utils.files import brief, read_json

CHECKPOINT = Path("checkpoints", "latest-checkpoint.pt")
ENCODER_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)

PREFIXES = ("visual.trunk.", "vision_model.")
"""Prefixes of a vision encoder's names in files of open_clip (which wraps timm) and of transformers."""
OTHER = re.compile(r"(text\.|text_model\.|logit_scale$|logit_bias$|visual_projection\.|text_projection\b)")
"""Names of tensors of a whole SigLIP or CLIP that do not belong to the vision encoder."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class EncoderWeights:
    """The tensors of a vision encoder, and the names of those that LLaVA does not use."""

    tensors: Tensors
    unused: tuple[str, ...]


def read_config(run: Path) -> dict[str, Any]:
    """Read a run's config.json.

    Raises:
        PruningError: If it cannot be read.
    """
    path = run / "config.json"
    remedy = f"give the directory of a run of TRI-ML/prismatic-vlms, with config.json and {CHECKPOINT}"
    config = read_json(path, remedy)
    if not isinstance(config, dict):
        raise PruningError(f"{path} is not a JSON object; give a Prismatic run's own config.json.")
    return config


def read_checkpoint(run: Path) -> dict[str, Tensors]:
    """Return a run's tensors by part: projector, llm_backbone and, if it was trained, vision_backbone.

    Raises:
        PruningError: If the file is missing or damaged, or has other parts.
    """
    path = run / CHECKPOINT
    document = _load_pickle(path)
    model = document.get("model")
    if not isinstance(model, Mapping) or not all(_are_tensors(part) for part in model.values()):
        raise PruningError(f"{path} has no tensors under 'model'; give a Prismatic run's own checkpoint.")
    # Some runs store the optimizer's state in the same file; it is not part of the model.
    other = [str(key) for key in document if key not in ("model", "optimizer")]
    wrong = other + [f"model.{part}" for part in model if part not in (names.PROJECTOR, names.LLM, names.VISION)]
    missing = [part for part in (names.PROJECTOR, names.LLM) if part not in model]
    if wrong or missing:
        parts = [f"unknown {', '.join(wrong)}"] * bool(wrong) + [f"missing model.{', model.'.join(missing)}"] * bool(
            missing
        )
        raise PruningError(
            f"{path} does not have the parts of a Prismatic model ({'; '.join(parts)}); give a Prismatic run's own "
            "checkpoint."
        )
    return {str(part): dict(tensors) for part, tensors in model.items()}


def encoder_in_checkpoint(tensors: Tensors) -> EncoderWeights:
    """Return the vision encoder that a checkpoint includes.

    Raises:
        PruningError: If it is not a single encoder.
    """
    prefix = "featurizer."
    other = [name for name in tensors if not name.startswith(prefix)]
    if other:
        raise PruningError(
            f"The checkpoint's {names.VISION} has tensors outside of one vision encoder ({prefix}*): unknown "
            f"{', '.join(other)}; models with several encoders cannot be converted."
        )
    return _without_unused({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, ())


def read_encoder(path: Path) -> EncoderWeights:
    """Read a vision encoder, in the names of timm or transformers, from a file or a directory.

    Raises:
        PruningError: If there is no such file, or it cannot be read.
    """
    file = path
    if path.is_dir():
        candidates = [path / name for name in ENCODER_FILES if (path / name).is_file()]
        if not candidates:
            raise PruningError(f"--vision {path} has none of {', '.join(ENCODER_FILES)}; give the file itself.")
        file = candidates[0]
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                return _select(list(opened.keys()), opened.get_tensor)
        except (OSError, SafetensorError) as error:
            raise PruningError(f"--vision {file} cannot be read ({brief(error)}); get it again.") from error
    tensors = _load_pickle(file)
    if not _are_tensors(tensors):
        raise PruningError(f"--vision {file} contains other things than tensors; give the weights of a model.")
    return _select(list(tensors), tensors.__getitem__)


def _select(keys: list[str], read: Callable[[str], Tensor]) -> EncoderWeights:
    """Return the vision encoder among the tensors of a file."""
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in keys)), "")
    other = tuple(name for name in keys if prefix and OTHER.match(name))
    return _without_unused({name.removeprefix(prefix): read(name) for name in keys if name not in other}, other)


def _without_unused(tensors: Tensors, other: tuple[str, ...]) -> EncoderWeights:
    """Return the tensors that LLaVA uses, and the names of all others."""
    unused = tuple(name for name in tensors if name.startswith(names.UNUSED))
    return EncoderWeights({name: tensor for name, tensor in tensors.items() if name not in unused}, unused + other)


def _load_pickle(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise PruningError(f"{path} is not a regular file; give a checkpoint as its training wrote it.")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file runs into anything
        raise PruningError(f"{path} cannot be read as a checkpoint ({brief(error)}); get it again.") from error
    if not isinstance(document, dict):
        raise PruningError(f"{path} does not contain a dictionary; give a checkpoint as its training wrote it.")
    return document


def _are_tensors(part: object) -> bool:
    return isinstance(part, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in part.items()
    )
