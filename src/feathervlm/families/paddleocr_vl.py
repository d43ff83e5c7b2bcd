"""PaddleOCR-VL: one grid of the picture's own shape, as Qwen2-VL has it, and no videos."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.engine.call import VisualInput
from feathervlm.families.patch_merging import merge_pictures
from feathervlm.families.qwen2_vl import Qwen2VL
from feathervlm.families.runs import PlaceholderRun


class PaddleOCRVL(Qwen2VL):
    """`PaddleOCRVLForConditionalGeneration`."""

    title = "PaddleOCR-VL"
    model_types = ("paddleocr_vl",)
    modalities = ("image",)
    geometry = "one grid of the picture's own shape"

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, in raster order, merged."""
        merge = self.model.config.vision_config.spatial_merge_size
        return merge_pictures(output.last_hidden_state.flatten(0, -2), [run.picture[0].shape for run in runs], merge)
