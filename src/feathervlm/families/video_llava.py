"""Video-LLaVA: one square grid per image; videos frame by frame, each after a token for the whole frame.

That token ([CLS] of the encoder) shows no part of the picture and counts as text.
Its image processor needs torchvision, so the tests prepare pictures by hand, as its code does.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.core.layout import Box, Plane
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.llava import selected
from feathervlm.families.placement import center_crop
from feathervlm.families.runs import PlaceholderRun, grid


class VideoLlava(Placeholders):
    """`VideoLlavaForConditionalGeneration`."""

    title = "Video-LLaVA"
    model_types = ("video_llava",)
    crops = True
    modalities = ("image", "video")
    geometry = "one square grid; videos one per frame, whose [CLS] is text"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return one square per image, and the frames of a video in one plane."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        if visual.modality == "image":
            return [grid(side, side)] * len(visual.given["pixel_values"])
        videos, frames = visual.given["pixel_values_videos"].shape[:2]
        whole = tuple(frame * (side**2 + 1) for frame in range(frames))
        return [PlaceholderRun((Plane((frames, side, side)),), whole)] * videos

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the selected layer, without [CLS]."""
        return selected(output, self.model.config).flatten(0, 1)

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        return center_crop(processor, size)
