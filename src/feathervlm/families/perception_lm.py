"""Perception LM: the overview first, then tiles that follow each other without a mark; videos frame by frame.

All images of a batch have the same number of tiles, which share the run of placeholders equally.
Its image processor and its encoder need torchvision: the tests prepare pictures by hand, and replace the encoder by a
convolution.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.core.boxes import BRACKETS, BoxFormat
from feathervlm.engine.call import PIXELS, ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_square
from feathervlm.families.runs import PlaceholderRun, grid
from feathervlm.families.tiles import arrangements, joined, prompts, sketch, spans_of


class PerceptionLM(Placeholders):
    """`PerceptionLMForConditionalGeneration`."""

    title = "Perception LM"
    model_types = ("perception_lm",)
    modalities = ("image", "video")
    boxes = BoxFormat(
        name="thousandths of three digits, in brackets",
        prompt="Provide a bounding box of the region this sentence describes: '{object}'.\n"
        "Use the format [x1, y1, x2, y2].",
        notations=("[{},{},{},{}]", BRACKETS),
        scale=1000,
        digits=3,
    )
    """Three decimals without their point: facebookresearch/perception_models, apps/plm/notebook_demos/
    image_grounding.ipynb (`[040,482,112,576]`)."""
    geometry = "an overview and equal tiles, joined to one plane; videos one grid per frame"

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        """Return a sketch of every tile of every image, of shape (images, tiles, channels, 8, 8)."""
        pixels = arguments[PIXELS[modality]]
        return sketch(pixels).unflatten(0, pixels.shape[:2])

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return overview and tiles of every image, and the frames of every video."""
        tiles = visual.given[PIXELS[visual.modality]].shape[1]
        token = self.token(visual.modality)
        lengths = [length for ids in prompts(call, visual) for _, length in spans_of(ids, token)]
        sides = [isqrt(length // tiles) for length in lengths]
        if visual.modality == "video":
            return [grid(side, side, tiles) for side in sides]
        sketches = visual.facts if visual.output is not None else self.look(visual.modality, visual.given)
        shapes = arrangements(list(sketches.roll(-1, 1)))
        return [joined(side, *shape, overview_first=True) for side, shape in zip(sides, shapes, strict=True)]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer without [CLS], pooled."""
        states: Tensor = output.last_hidden_state
        return merge_square(
            states[:, 1:] if self.model.config.vision_use_cls_token else states, runs[0].picture[0].shape[1]
        )
