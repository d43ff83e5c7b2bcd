"""LLaVA 1.5 and similar models: a ViT's patch features through an MLP, one square grid of tokens per image.

Visual tokens are the `<image>` placeholders, in raster order, with nothing between the rows. The CLIP processor of
the original crops the center of the picture, so the grid covers no more than that.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.core.boxes import FRACTIONS_OF_SQUARE
from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import Box
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.placement import center_crop, padded_square, pads
from feathervlm.families.runs import PlaceholderRun, grid, square


class Llava(Placeholders):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP encoder and any text model."""

    title = "LLaVA 1.5"
    model_types = ("llava",)
    crops = True
    boxes = FRACTIONS_OF_SQUARE
    """The boxes of LLaVA 1.5; a newer model of this type may have been trained with others."""

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        pixels = visual.given["pixel_values"]
        patch = self.model.config.vision_config.patch_size
        rows, cols = (side // patch for side in pixels.shape[-2:])
        return [grid(rows, cols)] * pixels.shape[0]

    def runs_of_features(self, visual: VisualInput) -> list[PlaceholderRun]:
        return [square(len(features)) for features in visual.output.pooler_output]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the layer that the config selects, without [CLS]."""
        return selected(output, self.model.config).flatten(0, 1)

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        return padded_square(size) if pads(processor) else center_crop(processor, size)


def selected(output: Any, config: Any) -> Tensor:
    """Return the states of the layer that the config selects, without [CLS], of shape (images, patches, dim).

    Args:
        output: The output of the vision encoder.
        config: The config of the model.

    Raises:
        Unprunable: If the config selects several layers, or the output has no states of its layers.
    """
    states, layer = getattr(output, "hidden_states", None), getattr(config, "vision_feature_layer", None)
    if states is None or not isinstance(layer, int):
        raise Unprunable("This model's patch features cannot be read; use the projected ones (features=projected).")
    chosen: Tensor = states[layer]
    return chosen[:, 1:] if config.vision_feature_select_strategy == "default" else chosen
