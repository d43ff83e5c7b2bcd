"""Qwen2.5-VL: Qwen2-VL with windows in its vision encoder, which restores the order of the patches for the decoder."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from feathervlm.core.boxes import BRACKETS, BoxFormat
from feathervlm.engine.call import VisualInput
from feathervlm.families.qwen2_vl import Qwen2VL
from feathervlm.families.runs import PlaceholderRun


class Qwen25VL(Qwen2VL):
    """`Qwen2_5_VLForConditionalGeneration`."""

    title = "Qwen2.5-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    boxes = BoxFormat(
        name="pixels of the resized picture, JSON",
        prompt="Locate {object} in this image and output the bbox coordinates in JSON format.",
        notations=('{"bbox_2d": [{}, {}, {}, {}]}', BRACKETS),
        scale=None,
    )
    """Pixels of the resized picture, 14 for each row and column of `image_grid_thw`: its developers in QwenLM/Qwen3-VL
    #676 and #866; the prompt: #991; JSON, without tokens of their own: #733, #1137."""

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, with the windows back in raster order."""
        config = self.model.config.vision_config
        order, _ = get_vision_window_index(
            visual.given[f"{visual.modality}_grid_thw"],
            spatial_merge_size=config.spatial_merge_size,
            window_size=config.window_size,
            patch_size=config.patch_size,
        )
        merged = super().features(visual, output, runs)
        return merged[torch.argsort(order).to(merged.device)]
