"""ERNIE 4.5 VL: Qwen2-VL's geometry, with experts of their own for visual tokens.

Decoder layers read which tokens are visual from `moe_mm_token_type_ids`, which has to follow the rows. The frames of a
video are merged two by two after the vision encoder.
"""

from feathervlm.core.boxes import THOUSANDTHS_JSON
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.qwen2_vl import Qwen2VL
from feathervlm.families.runs import PlaceholderRun, grid


class Ernie45VL(Qwen2VL):
    """`Ernie4_5_VLMoeForConditionalGeneration`."""

    title = "ERNIE 4.5 VL"
    model_types = ("ernie4_5_vl_moe",)
    boxes = THOUSANDTHS_JSON
    """PaddlePaddle/ERNIE#1364: Qwen3-VL's coordinates, according to its developers (on 28B-A3B-Thinking).
    The prompt asks for JSON."""
    row_arguments = ("moe_mm_token_type_ids",)

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return one grid per image, and one with pairs of frames per video."""
        if visual.modality == "image":
            return super().runs(visual, call)
        config = self.model.config.vision_config
        merge, pairs = config.spatial_merge_size, config.temporal_merge_size
        grids = visual.given["video_grid_thw"].tolist()
        return [grid(rows // merge, cols // merge, frames // pairs) for frames, rows, cols in grids]
