"""Which model is measured: one that is loaded, or a preset with random weights. Looked at without weights first.

Knows how to get models and prompts; measures nothing.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from feathervlm import families
from feathervlm.api import prune
from feathervlm.bench import presets
from feathervlm.bench.inputs import Prompt, of_pictures
from feathervlm.core.errors import PruningError
from feathervlm.engine.call import ModelCall
from feathervlm.inference import loading
from feathervlm.methods import get

QUESTION = "Where is the red object, and what is to the left of it? Answer with one short sentence."
PICTURE = 672
"""Pixels of a side of the pictures that a real model is shown."""


@dataclass(eq=False)
class Subject(ABC):
    """What is measured.

    Attributes:
        device: where.
        dtype: in which type; `auto` for what weights are stored in.
        attention: implementation.
    """

    device: torch.device
    dtype: torch.dtype | str
    attention: str

    @abstractmethod
    def sizes(self, tokens: tuple[int, ...], layers: tuple[int, ...]) -> list[tuple[int | None, int | None]]:
        """(visual tokens, decoder layers) of every model and prompt that is asked for; None: as it is."""

    @abstractmethod
    def look(self, tokens: int | None, layers: int | None) -> tuple[Any, Prompt]:
        """The model without weights, and the prompt.

        Raises:
            PruningError: if there is no such model, or no such prompt.
        """

    @abstractmethod
    def build(self, model: Any) -> Any:
        """The same model with weights, on its device."""

    def type_of(self, model: Any) -> torch.dtype:
        """The type that a model without weights will have."""
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        stored = getattr(model.config, "dtype", None) or torch.float32
        return stored if isinstance(stored, torch.dtype) else getattr(torch, stored)


@dataclass(eq=False)
class Built(Subject):
    """A preset with random weights.

    Attributes:
        preset: it.
        text: text tokens of a prompt.
    """

    preset: presets.Preset
    text: int

    def sizes(self, tokens: tuple[int, ...], layers: tuple[int, ...]) -> list[tuple[int | None, int | None]]:
        """See `Subject.sizes`."""
        return [(number, depth) for depth in layers or (None,) for number in tokens or (self.preset.tokens,)]

    def look(self, tokens: int | None, layers: int | None) -> tuple[Any, Prompt]:
        """See `Subject.look`."""
        assert tokens is not None
        config = self.preset.config(tokens, layers)
        return loading.empty_model(config, self.attention), self.preset.prompt(tokens, self.text)

    def build(self, model: Any) -> Any:
        """See `Subject.build`."""
        torch.manual_seed(0)
        with torch.device(self.device):
            made = AutoModelForImageTextToText.from_config(
                model.config, attn_implementation=self.attention, dtype=self.type_of(model)
            )
        return made.eval()

    def type_of(self, model: Any) -> torch.dtype:
        """float32 on a CPU, else bfloat16, unless told otherwise."""
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16


@dataclass(eq=False)
class Loaded(Subject):
    """A model from a directory or the hub, with its own weights and processor.

    Attributes:
        name: of it.
    """

    name: str
    _processor: Any = field(default=None, repr=False)

    def sizes(self, tokens: tuple[int, ...], layers: tuple[int, ...]) -> list[tuple[int | None, int | None]]:
        """See `Subject.sizes`."""
        if layers:
            raise PruningError(
                f"--depth builds a --config with other layers; {self.name!r} has its own, so leave it out."
            )
        return [(number, None) for number in tokens or (None,)]

    def look(self, tokens: int | None, layers: int | None) -> tuple[Any, Prompt]:
        """See `Subject.look`."""
        model = loading.empty_model(loading.load_config(self.name), self.attention)
        if self._processor is None:
            self._processor = loading.load_processor(self.name)
        family = families.find(model, None)

        def visual(inputs: dict[str, Tensor]) -> int:
            return family.layout(ModelCall(dict(inputs))).counts[0]

        return model, of_pictures(self._processor, tokens, QUESTION, PICTURE, visual)

    def build(self, model: Any) -> Any:
        """See `Subject.build`."""
        loaded = loading.load_model(self.name, self.dtype, self.attention)
        return loaded.to(self.device)


def check(model: Any, methods: tuple[str, ...]) -> None:
    """Try methods on a model without weights.

    Raises:
        PruningError: if one does not exist, or asks for what the model does not have.
    """
    for spec in methods:
        prune(model, get(spec)).remove()
