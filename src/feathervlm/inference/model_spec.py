"""Which model answers and with what settings, and the fingerprint that identifies its files.

The embedded model, and any model that was trained in the same way, is recognized by the location tokens of its
tokenizer; its defaults differ from those of other models.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from feathervlm.core.errors import PruningError
from feathervlm.embedded.assets import SHIPPED, WEIGHTS
from feathervlm.embedded.questions import LOCATIONS

UNPRUNED = "unpruned"
"""Name of the baseline, which prunes nothing."""
SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Suffixes of the files of a model directory on which answers depend."""


@dataclass(frozen=True)
class ModelSettings:
    """The settings of a model with all defaults filled in; see `ModelSpec`."""

    device: str
    dtype: str
    max_new_tokens: int
    batch: int


@dataclass(frozen=True)
class ModelSpec:
    """Which model answers, and how.

    Args:
        model: "embedded" for the model that ships with the package, a directory, or an id on the hub.
        device: Name of a torch device. "auto" is the accelerator if there is one, and the CPU for embedded models.
        dtype: Name of a torch type. "auto" is the stored type, and float32 for embedded models; "stored" is the stored
            type for all models.
        attention: Name of an attention implementation of transformers.
        max_new_tokens: Maximum length of an answer. The default is 5 for embedded models and 32 for others.
        batch: Prompts per forward. The default is 40 for embedded models and 1 for others.

    Raises:
        PruningError: A number is not positive.
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
    def path(self) -> str:
        """The directory of the model, or its id on the hub."""
        return str(WEIGHTS) if self.model == SHIPPED else self.model

    def as_stored(self) -> "ModelSpec":
        """Return the spec with the stored type as default, unless the model is the one that ships."""
        return replace(self, dtype="stored") if self.dtype == "auto" and self.model != SHIPPED else self

    def resolve(self, embedded: bool) -> ModelSettings:
        """Return the settings for an embedded model or for another one."""
        device = "cpu" if embedded and self.device == "auto" else self.device
        dtype = "float32" if embedded and self.dtype == "auto" else self.dtype
        length, batch = self.max_new_tokens or (5 if embedded else 32), self.batch or (40 if embedded else 1)
        return ModelSettings(device, dtype, length, batch)

    def fingerprint(self) -> str:
        """Return a hash of the files on which answers depend, or the commit if the model comes from the hub.

        Raises:
            PruningError: There are no weights, or the cache of the hub does not hold the commit.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            config = cached_file(self.path, "config.json")
            commit = Path(config).parent if config else Path()
            if commit.parent.name != "snapshots":
                raise PruningError(f"The commit of {self.path} is unknown; download it, and give its directory.")
            return commit.name
        files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
        if not any(path.suffix == ".safetensors" for path in files):
            raise PruningError(f"{self.path} holds no .safetensors file; save the model with save_pretrained.")
        whole = hashlib.sha256()
        for path in files:
            with path.open("rb") as stream:
                whole.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()


def is_embedded(processor: Any) -> bool:
    """Whether a processor belongs to the embedded model, or to one of another training run."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return False
    return not {None, tokenizer.unk_token_id} & set(tokenizer.convert_tokens_to_ids(LOCATIONS))
