"""LLaVA 1.5 and its kin: a ViT's patch features through an MLP, one square grid of tokens per image.

Visual tokens are the `<image>` placeholders, in raster order, with nothing between the rows. The CLIP processor of
the original crops the centre of the picture, which is then all that the grid covers.
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
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower and any text model."""

    title = "LLaVA 1.5"
    model_types = ("llava",)
    crops = True
    boxes = FRACTIONS_OF_SQUARE
    """LLaVA 1.5's own; a newer model of this type may have been trained otherwise."""

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """One (1, side, side) grid per image."""
        pixels = visual.given["pixel_values"]
        patch = self.model.config.vision_config.patch_size
        rows, cols = (side // patch for side in pixels.shape[-2:])
        return [grid(rows, cols)] * pixels.shape[0]

    def runs_of_features(self, visual: VisualInput) -> list[PlaceholderRun]:
        """As above, from the number of features."""
        return [square(len(features)) for features in visual.output.pooler_output]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """The tower's selected layer, without [CLS]."""
        return selected(output, self.model.config).flatten(0, 1)

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        return padded_square(size) if pads(processor) else center_crop(processor, size)


def selected(output: Any, config: Any) -> Tensor:
    """The layer of the tower that the config names, without [CLS]: (images, patches, dim).

    Raises:
        Unprunable: if it names several, or the tower's layers were not kept.
    """
    states, layer = getattr(output, "hidden_states", None), getattr(config, "vision_feature_layer", None)
    if states is None or not isinstance(layer, int):
        raise Unprunable("This model's patch features cannot be read; use the projected ones (features=projected).")
    chosen: Tensor = states[layer]
    return chosen[:, 1:] if config.vision_feature_select_strategy == "default" else chosen
