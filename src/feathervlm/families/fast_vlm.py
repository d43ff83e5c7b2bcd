"""FastVLM: one square grid from a convolutional encoder.

The encoder needs timm, which needs torchvision; the tests replace it by a convolution with outputs of the same shape.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.core.layout import Box
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.llava import Llava
from feathervlm.families.runs import PlaceholderRun, grid


class FastVLM(Placeholders):
    """`FastVlmForConditionalGeneration`."""

    title = "FastVLM"
    model_types = ("fast_vlm",)
    crops = True

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        side = isqrt(self.model.config.image_seq_length)
        return [grid(side, side)] * len(visual.given["pixel_values"])

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the last feature map of the encoder."""
        maps: Tensor = output.last_hidden_state  # (images, dim, rows, cols)
        return maps.flatten(2).transpose(1, 2).flatten(0, 1)

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        return Llava.shown(processor, size)
