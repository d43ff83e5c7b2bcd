"""LLaVA 1.5 and its kin: a ViT's patch features through an MLP, one square grid of tokens per image.

Visual tokens are the `<image>` placeholders, in raster order, with nothing between the rows. The CLIP processor of
the original crops the centre of the picture, which is then all that the grid covers.
"""

from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import Box, VisualLayout
from feathervlm.engine.family import Call, Visual
from feathervlm.families.base import Placeholders, Run, grid


class Llava(Placeholders):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower and any text model."""

    title = "LLaVA 1.5"
    model_types = ("llava",)

    def runs(self, visual: Visual, call: Call) -> list[Run]:
        """One (1, side, side) grid per image."""
        pixels = visual.given["pixel_values"]
        patch = self.model.config.vision_config.patch_size
        rows, cols = (side // patch for side in pixels.shape[-2:])
        return [grid(rows, cols)] * pixels.shape[0]

    def runs_of_features(self, visual: Visual) -> list[Run]:
        """As above, from the number of features."""
        return [square(len(features)) for features in visual.output.pooler_output]

    def vision_features(self, call: Call, layout: VisualLayout) -> Tensor:
        """The tower's selected layer, without [CLS]."""
        config = self.model.config
        states = getattr(call.encoder_output("image"), "hidden_states", None)
        if states is None or not isinstance(config.vision_feature_layer, int):
            raise Unprunable("This model's patch features cannot be read; use the projected ones (features=projected).")
        selected = states[config.vision_feature_layer]
        if config.vision_feature_select_strategy == "default":
            selected = selected[:, 1:]
        features = selected.detach().flatten(0, 1).to(layout.mask.device)  # (tokens of all images, dim)
        exists = layout.geometry().exists
        place = (exists.flatten().cumsum(0) - 1).clamp(min=0).view(exists.shape)
        return features[place]

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        """The whole picture where the processor squeezes it to a square; the centre where it crops."""
        image_processor = getattr(processor, "image_processor", processor)
        if not getattr(image_processor, "do_center_crop", False):
            return super().shown(processor, size)
        (width, height), crop, resized = size, image_processor.crop_size, image_processor.size
        shortest = resized.get("shortest_edge")
        if shortest is None:
            scale_x, scale_y = width / resized["width"], height / resized["height"]
        else:
            scale_x = scale_y = min(width, height) / shortest
        wide, high = crop["width"] * scale_x, crop["height"] * scale_y
        return (width - wide) / 2, (height - high) / 2, (width + wide) / 2, (height + high) / 2


def square(tokens: int) -> Run:
    """A square grid of so many tokens.

    Raises:
        Unprunable: if there is none.
    """
    side = isqrt(tokens)
    if side * side != tokens:
        raise Unprunable(
            f"An image of {tokens} tokens is not a square grid; tell prune() the shape with "
            "layout=VisualLayout(mask, grids)."
        )
    return grid(side, side)
