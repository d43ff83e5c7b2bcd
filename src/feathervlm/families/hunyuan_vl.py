"""HunYuan-VL: one grid of the picture's own shape, with features for its begin, the end of each row, and its end.

All of them are `<image>` placeholders; the ones that show no part of the picture count as text. Rotary positions have
axes for rows, columns and images; they are made before the decoder layers, so the remaining tokens keep theirs.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.core.layout import Plane
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_pictures
from feathervlm.families.runs import PlaceholderRun


class HunYuanVL(Placeholders):
    """`HunYuanVLForConditionalGeneration`."""

    title = "HunYuan-VL"
    model_types = ("hunyuan_vl",)
    text_types = ("hunyuan_vl_text", "hunyuan_v1_dense", "hunyuan_v1_moe")
    geometry = "one grid of the picture's own shape; line breaks, begin and end are text"
    limits = "in a batch the model itself counts pictures over all prompts"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return one grid per image with the placeholders around its rows as text."""
        merge = self.model.config.vision_config.spatial_merge_size
        runs = []
        for _, high, wide in visual.given["image_grid_thw"].tolist():
            rows, cols = high // merge, wide // merge
            breaks = ((row + 1) * (cols + 1) for row in range(rows))
            runs.append(PlaceholderRun((Plane((1, rows, cols)),), (0, *breaks, rows * (cols + 1) + 1)))
        return runs

    def normalize_after_rotary(self, layer: int, name: str, states: Tensor, rotated: bool) -> Tensor:
        """Apply the norms of queries and keys, which follow the rotation."""
        norm = getattr(self.decoder_view.attention_module(layer), f"{name}_layernorm", None)
        return states if norm is None else norm(states)

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, in raster order, merged."""
        merge = self.model.config.vision_config.spatial_merge_size
        return merge_pictures(output.last_hidden_state[0], [run.picture[0].shape for run in runs], merge)
