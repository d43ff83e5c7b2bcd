"""LightOnOCR: one grid of the picture's own shape, as in Mistral 3, but with nothing between the rows."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.engine.call import VisualInput
from feathervlm.families.mistral3 import Mistral3
from feathervlm.families.patch_merging import merge_pictures
from feathervlm.families.runs import PlaceholderRun


class LightOnOcr(Mistral3):
    """`LightOnOcrForConditionalGeneration`."""

    title = "LightOnOCR"
    model_types = ("lighton_ocr",)
    geometry = "one grid of the picture's own shape"

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, in raster order, merged."""
        merge = self.model.config.spatial_merge_size
        return merge_pictures(output.last_hidden_state.flatten(0, -2), [run.picture[0].shape for run in runs], merge)
