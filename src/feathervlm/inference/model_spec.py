"""Which model a study asks for, with what settings, and what tells it from others.

The embedded model, and any that was trained as it was, is known by the location tokens of its tokenizer: it has other
defaults than a model of a family. Knows files and settings; knows nothing of questions.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from feathervlm.core.errors import PruningError
from feathervlm.embedded.assets import SHIPPED, WEIGHTS
from feathervlm.embedded.questions import LOCATIONS
from feathervlm.inference import loading

UNPRUNED = "unpruned"


TELLING = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Files of a model directory on which answers depend."""


@dataclass(frozen=True)
class Wanted:
    """Which model answers, and how.

    Args:
        model: "embedded" for the one that ships, a directory, or a hub id.
        device: "auto": the accelerator if there is one; the CPU for models of the embedded kind.
        dtype: "auto": as the weights are stored; float32 for models of the embedded kind.
        attention: transformers' name of an implementation.
        max_new_tokens: per answer; None: 5 for models of the embedded kind, 32 for others.
        batch: questions per forward; None: 40 for models of the embedded kind, 1 for others.

    Raises:
        PruningError: if a number is not positive.
    """

    model: str = SHIPPED
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    max_new_tokens: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PruningError(f"{name}={value} is not positive; give 1 or more.")

    @property
    def place(self) -> str:
        """The directory or hub id."""
        return str(WEIGHTS) if self.model == SHIPPED else self.model

    def settled(self, embedded: bool) -> tuple[torch.device, torch.dtype | str, int, int]:
        """Device, dtype, max_new_tokens and batch, for a model of the embedded kind or another.

        Raises:
            PruningError: if there is no such device or dtype.
        """
        device = "cpu" if embedded and self.device == "auto" else self.device
        dtype = "float32" if embedded and self.dtype == "auto" else self.dtype
        longest, batch = self.max_new_tokens or (5 if embedded else 32), self.batch or (40 if embedded else 1)
        return loading.choose_device(device), loading.choose_dtype(dtype), longest, batch


def is_embedded(processor: Any) -> bool:
    """Whether a processor is that of the embedded model, or of one from another training run."""
    tokenizer = getattr(processor, "tokenizer", None)
    return tokenizer is not None and set(LOCATIONS) <= tokenizer.get_vocab().keys()


def fingerprint(place: str) -> str:
    """A hash of all files of a model directory on which answers depend, or the commit of a hub id.

    Raises:
        PruningError: if there are no weights, or the hub's cache does not tell the commit.
    """
    folder = Path(place)
    if not folder.is_dir():
        found = cached_file(place, "config.json")
        commit = Path(found).parent if found else Path()
        if commit.parent.name != "snapshots":
            raise PruningError(
                f"It cannot be told which commit of {place} this is; download it, and give its directory."
            )
        return commit.name
    files = sorted(path for path in folder.iterdir() if path.suffix in TELLING)
    if not any(path.suffix == ".safetensors" for path in files):
        raise PruningError(f"{place} holds no .safetensors file; save the model with save_pretrained.")
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            whole.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
