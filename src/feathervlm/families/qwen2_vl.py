"""Qwen2-VL: pictures at their own shape, 2x2 patches merged into a token, videos two frames at a time.

`image_grid_thw` and `video_grid_thw` have (frames, rows, cols) in patches. Rotary positions have three axes (M-RoPE);
they are made before the decoder layers, so the remaining tokens keep theirs.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from feathervlm.core.boxes import PAIRS, REGION, BoxFormat
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_groups
from feathervlm.families.runs import PlaceholderRun, grid


class Qwen2VL(Placeholders):
    """`Qwen2VLForConditionalGeneration`."""

    title = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    boxes = BoxFormat(
        name="thousandths, two points between tokens",
        prompt=REGION + "{object}",
        notations=("<|box_start|>({},{}),({},{})<|box_end|>", PAIRS),
        scale=1000,
    )
    """Thousandths between tokens of their own: arXiv 2409.12191; the prompt: QwenLM/Qwen3-VL#536, #866 (0 to 1000)."""
    geometry = "one grid of the picture's own shape; a video token shows 2 frames"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return one grid per image, and one with several frames per video."""
        merge = self.model.config.vision_config.spatial_merge_size
        grids = visual.given[f"{visual.modality}_grid_thw"].tolist()
        return [grid(rows // merge, cols // merge, frames) for frames, rows, cols in grids]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, where patches are grouped by token, merged."""
        return merge_groups(output.last_hidden_state, sum(run.length for run in runs))
