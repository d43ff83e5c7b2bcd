"""Qwen2-VL: pictures at their own shape, 2x2 patches merged into a token, videos two frames at a time.

`image_grid_thw` and `video_grid_thw` hold (frames, rows, cols) in patches. Rotary positions have three axes (M-RoPE);
they are made before the decoder layers, so pruned tokens simply keep theirs.
"""

from typing import ClassVar

from feathervlm.engine.family import Call, Visual
from feathervlm.families.base import Placeholders, Run, grid


class Qwen2VL(Placeholders):
    """`Qwen2VLForConditionalGeneration`."""

    title = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    modalities = ("image", "video")
    geometry = "one grid of the picture's own shape; a video token shows 2 frames"

    def runs(self, visual: Visual, call: Call) -> list[Run]:
        """One grid per image, one with several frames per video."""
        merge = self.model.config.vision_config.spatial_merge_size
        grids = visual.given[f"{visual.modality}_grid_thw"].tolist()
        return [grid(rows // merge, cols // merge, frames) for frames, rows, cols in grids]
