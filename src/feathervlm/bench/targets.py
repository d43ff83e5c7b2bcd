"""The model that is measured: a pretrained one, or a preset with random weights.

Either is inspected without weights first, so that a request that cannot be met is refused before anything is built.
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
from feathervlm.bench.inputs import BenchPrompt, picture_prompt
from feathervlm.core.errors import PruningError
from feathervlm.engine.call import ModelCall
from feathervlm.inference import loading
from feathervlm.inference.model_spec import is_embedded
from feathervlm.methods import get

QUESTION = "Where is the red object, and what is to the left of it? Answer with one short sentence."
EMBEDDED_QUESTION = "where is the small red circle ?"
"""A question in the words of the embedded model."""
PICTURE = 672
"""Side in pixels of the pictures that a pretrained model is shown."""


@dataclass(eq=False)
class BenchTarget(ABC):
    """A model to measure.

    Attributes:
        device: Device that it runs on.
        dtype: Type of its weights; `auto` for the default.
        attention: Attention implementation.
    """

    device: torch.device
    dtype: torch.dtype | str
    attention: str

    @abstractmethod
    def sizes(self, tokens: tuple[int, ...], layers: tuple[int, ...]) -> list[tuple[int | None, int | None]]:
        """Return (visual tokens, decoder layers) of every requested model and prompt; None for the model's own."""

    @abstractmethod
    def inspect(self, tokens: int | None, layers: int | None) -> tuple[Any, BenchPrompt]:
        """Return the model without weights, and the prompt.

        Raises:
            PruningError: If there is no such model or no such prompt.
        """

    @abstractmethod
    def build(self, model: Any) -> Any:
        """Return the same model with weights, on its device."""

    def type_of(self, model: Any) -> torch.dtype:
        """Return the type that the weights of a model without weights will have."""
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        stored = getattr(model.config, "dtype", None) or torch.float32
        return stored if isinstance(stored, torch.dtype) else getattr(torch, stored)


@dataclass(eq=False)
class PresetTarget(BenchTarget):
    """A preset with random weights.

    Attributes:
        preset: The preset.
        text: Number of text tokens of a prompt.
    """

    preset: presets.Preset
    text: int

    def sizes(self, tokens: tuple[int, ...], layers: tuple[int, ...]) -> list[tuple[int | None, int | None]]:
        return [(number, depth) for depth in layers or (None,) for number in tokens or (self.preset.tokens,)]

    def inspect(self, tokens: int | None, layers: int | None) -> tuple[Any, BenchPrompt]:
        assert tokens is not None
        config = self.preset.config(tokens, layers)
        return loading.empty_model(config, self.attention), self.preset.prompt(tokens, self.text)

    def build(self, model: Any) -> Any:
        torch.manual_seed(0)
        with torch.device(self.device):
            built = AutoModelForImageTextToText.from_config(
                model.config, attn_implementation=self.attention, dtype=self.type_of(model)
            )
        return built.eval()

    def type_of(self, model: Any) -> torch.dtype:
        """Return the requested type; by default float32 on a CPU and bfloat16 elsewhere."""
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16


@dataclass(eq=False)
class PretrainedTarget(BenchTarget):
    """A model from a directory or the hub, with its own weights and processor.

    Attributes:
        name: Directory or hub id.
    """

    name: str
    _processor: Any = field(default=None, repr=False)

    def sizes(self, tokens: tuple[int, ...], layers: tuple[int, ...]) -> list[tuple[int | None, int | None]]:
        if layers:
            raise PruningError(
                f"--depth builds a --config with another number of layers, and {self.name!r} has its own; leave it out."
            )
        return [(number, None) for number in tokens or (None,)]

    def inspect(self, tokens: int | None, layers: int | None) -> tuple[Any, BenchPrompt]:
        model = loading.empty_model(loading.load_config(self.name), self.attention)
        if self._processor is None:
            self._processor = loading.load_processor(self.name)
        family = families.find(model, None)

        def count_visual(inputs: dict[str, Tensor]) -> int:
            return family.layout(ModelCall(dict(inputs))).counts[0]

        question = EMBEDDED_QUESTION if is_embedded(self._processor) else QUESTION
        return model, picture_prompt(self._processor, tokens, question, PICTURE, count_visual)

    def build(self, model: Any) -> Any:
        loaded = loading.load_model(self.name, self.dtype, self.attention)
        return loaded.to(self.device)


def check_methods(model: Any, methods: tuple[str, ...]) -> None:
    """Attach methods to a model without weights, one after the other.

    Raises:
        PruningError: If a method does not exist or does not fit the model.
    """
    for spec in methods:
        prune(model, get(spec)).remove()
