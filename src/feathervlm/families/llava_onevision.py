"""LLaVA-OneVision: LLaVA-NeXT's tiles with an upper limit, single views in prompts of several images, and videos.

A view of more tokens than `vision_aspect_ratio` allows is scaled down. In a prompt of several images each is one
overview. Frames of a video are pooled two by two; one line break ends the video.
"""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any

from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import Plane
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.llava_next import LlavaNext
from feathervlm.families.runs import PlaceholderRun


class LlavaOnevision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`."""

    title = "LLaVA-OneVision"
    model_types = ("llava_onevision",)
    modalities = ("image", "video")
    geometry = "an overview and an unpadded, limited view in tiles; line breaks are text; video frames pooled 2x2"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return images in tiles or as overviews alone, and videos frame by frame."""
        if visual.modality == "video":
            videos, frames = visual.given["pixel_values_videos"].shape[:2]
            plane = Plane((frames, ceil(self.side / 2), ceil(self.side / 2)))
            return [PlaceholderRun((plane,), (plane.size,))] * videos
        numbers = visual.given.get("batch_num_images")
        sizes = visual.given["image_sizes"].tolist()
        alone = [True] * len(sizes)
        if numbers is not None:
            alone = [number == 1 for number in numbers.tolist() for _ in range(number)]
        overview = Plane((1, self.side, self.side))
        single = PlaceholderRun((overview,), (overview.size,))
        return [self.run(size) if tiled else single for size, tiled in zip(sizes, alone, strict=True)]

    def limited(self, rows: int, cols: int) -> tuple[int, int]:
        """Return the rows and columns, scaled down to the limit."""
        most = int(self.model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = sqrt(rows * cols / (most * self.side**2))
        return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the features of LLaVA-NeXT, for pictures in tiles only."""
        if visual.modality == "video" or any(len(run.picture) == 1 for run in runs):
            raise Unprunable(
                "LLaVA-OneVision's patch features are known for pictures in tiles only; use the projected ones "
                "(features=projected)."
            )
        return super().features(visual, output, runs)
