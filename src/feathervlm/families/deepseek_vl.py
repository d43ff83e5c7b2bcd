"""DeepSeek-VL with one or two vision encoders, and Janus as it reads pictures: one square grid per image.

The processor pads a picture to a square; the padding, which `shown` includes, counts as picture. Most tests prepare
pictures by hand and without padding.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.core.layout import Box
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.runs import PlaceholderRun, grid


class DeepseekVL(Placeholders):
    """`DeepseekVLForConditionalGeneration`, its `Hybrid` form, and `JanusForConditionalGeneration`."""

    title = "DeepSeek-VL, Janus"
    model_types = ("deepseek_vl", "deepseek_vl_hybrid", "janus")
    crops = True
    limits = "the margin that fills up the square counts as picture"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        pixels = visual.given["pixel_values"]
        patch = self.model.config.vision_config.patch_size
        return [grid(*(side // patch for side in pixels.shape[-2:]))] * len(pixels)

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, of the encoder for low resolution if there are two."""
        states: Tensor = output.last_hidden_state
        return states.flatten(0, 1)

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        if not getattr(getattr(processor, "image_processor", processor), "do_pad", True):
            return super().shown(processor, size)
        width, height = size
        side = max(size)
        return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
