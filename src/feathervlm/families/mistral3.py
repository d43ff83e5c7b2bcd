"""Mistral Small 3 (Pixtral encoder): one grid of the picture's own shape; rows end with `[IMG_BREAK]`, which is text.

Its processor class needs torchvision; the tests use its image processor and write the text by hand.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_pictures
from feathervlm.families.runs import PlaceholderRun, grid


class Mistral3(Placeholders):
    """`Mistral3ForConditionalGeneration`."""

    title = "Mistral Small 3, Pixtral"
    model_types = ("mistral3",)
    geometry = "one grid of the picture's own shape; row breaks are text"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return one grid per image, from the size that the processor chose."""
        config = self.model.config
        pixels = config.vision_config.patch_size * config.spatial_merge_size
        return [grid(height // pixels, width // pixels) for height, width in visual.given["image_sizes"].tolist()]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the selected layer, picture after picture, merged."""
        layer, merge = self.model.config.vision_feature_layer, self.model.config.spatial_merge_size
        if not isinstance(layer, int):
            raise Unprunable("This model's patch features cannot be read; use the projected ones (features=projected).")
        patches = output.hidden_states[layer].flatten(0, 1)
        return merge_pictures(patches, [run.picture[0].shape for run in runs], merge)
