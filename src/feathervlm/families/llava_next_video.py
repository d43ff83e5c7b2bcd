"""LLaVA-NeXT-Video: images as in LLaVA-NeXT; frames of a video are pooled and follow each other."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.llava import selected
from feathervlm.families.llava_next import LlavaNext
from feathervlm.families.patch_merging import merge_square
from feathervlm.families.runs import PlaceholderRun, grid


class LlavaNextVideo(LlavaNext):
    """`LlavaNextVideoForConditionalGeneration`."""

    title = "LLaVA-NeXT-Video"
    model_types = ("llava_next_video",)
    modalities = ("image", "video")
    geometry = "an overview and an unpadded view in tiles; line breaks are text; video frames pooled"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return two planes per image, and one with several frames per video."""
        if visual.modality == "image":
            return super().runs(visual, call)
        videos, frames = visual.given["pixel_values_videos"].shape[:2]
        side = self.side // self.model.config.spatial_pool_stride
        return [grid(side, side, frames)] * videos

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the selected layer, pooled for frames."""
        if visual.modality == "image":
            return super().features(visual, output, runs)
        return merge_square(selected(output, self.model.config), runs[0].picture[0].shape[1])
