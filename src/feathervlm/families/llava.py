"""LLaVA 1.5 and its kin: a ViT's patch features through an MLP, one square grid of tokens per image.

Visual tokens are the `<image>` placeholders, in raster order, with nothing between the rows. The CLIP processor of
the original crops the centre of the picture; `picture_box` tells which part the grid covers.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import VisualLayout
from feathervlm.engine.family import Call


@dataclass(frozen=True, eq=False)
class Llava:
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower and any text model."""

    model: PreTrainedModel

    def visual_source(self, call: Call) -> tuple[Tensor, ...]:
        """Pixels in a plain forward, projected features under `generate`."""
        pixels = call.arguments.get("pixel_values")
        if pixels is not None:
            return (pixels,)
        output = self._encoded(call)
        if output is not None:
            return tuple(output.pooler_output)
        cache = call.arguments.get("past_key_values")
        if call.arguments.get("input_ids") is None and (cache is None or not int(cache.get_seq_length())):
            raise Unprunable(
                "inputs_embeds hide which tokens are visual; pass input_ids, or tell prune() with "
                "layout=VisualLayout(mask, grids)."
            )
        return ()

    def layout(self, call: Call) -> VisualLayout:
        """One (1, side, side) grid per image, in the order of the placeholders."""
        grids = self._grids(call)
        mask = self._placeholders(call)
        batch = call.shape[0]
        if batch == 1:  # transformers itself checks that placeholders and features match in number
            return VisualLayout(mask, [grids], trusted=True)
        per_sample: list[list[tuple[int, int, int]]] = []
        rest = iter(grids)
        for sample, found in enumerate(mask.sum(1).tolist()):
            images = []
            while found > 0:
                grid = next(rest, None)
                if grid is None:
                    raise PruningError(f"Sample {sample} has more image placeholders than there are image features.")
                images.append(grid)
                found -= grid[1] * grid[2]
            per_sample.append(images)
            if found:
                raise PruningError(
                    f"Sample {sample} has {-found} image placeholders fewer than its images have tokens; make the "
                    "prompt with the model's own processor."
                )
        return VisualLayout(mask, per_sample, trusted=True)

    def vision_features(self, call: Call, layout: VisualLayout) -> Tensor:
        """The tower's selected layer, without [CLS]."""
        output = self._encoded(call) or (call.encoded[-1] if call.encoded else None)
        config = self.model.config
        states = getattr(output, "hidden_states", None)
        if states is None or not isinstance(config.vision_feature_layer, int):
            raise Unprunable("This model's patch features cannot be read; use the projected ones (features=projected).")
        selected = states[config.vision_feature_layer]
        if config.vision_feature_select_strategy == "default":
            selected = selected[:, 1:]
        features = selected.detach().flatten(0, 1).to(layout.mask.device)  # (tokens of all images, dim)
        exists = layout.geometry().exists
        place = (exists.flatten().cumsum(0) - 1).clamp(min=0).view(exists.shape)
        return features[place]

    def _encoded(self, call: Call) -> Any:
        return (call.arguments.get("mm_encoder_outputs") or {}).get("image")

    def _grids(self, call: Call) -> list[tuple[int, int, int]]:
        pixels = call.arguments.get("pixel_values")
        if pixels is not None:
            patch = self.model.config.vision_config.patch_size
            rows, cols = (side // patch for side in pixels.shape[-2:])
            return [(1, rows, cols)] * pixels.shape[0]
        grids = []
        for features in self._encoded(call).pooler_output:
            side = isqrt(features.shape[0])
            if side * side != features.shape[0]:
                raise Unprunable(
                    f"An image of {features.shape[0]} tokens is not a square grid; tell prune() the shape with "
                    "layout=VisualLayout(mask, grids)."
                )
            grids.append((1, side, side))
        return grids

    def _placeholders(self, call: Call) -> Tensor:
        token = self.model.config.image_token_id
        ids = call.arguments.get("input_ids")
        if ids is not None:
            return ids == token
        embeds = call.arguments["inputs_embeds"]
        placeholder = self.model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == placeholder).all(-1)


def picture_box(processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part (left, top, right, bottom) of a picture of `size` (width, height) that the model's grid covers.

    The whole picture where the processor squeezes it to a square; the centre where it crops.
    """
    image_processor = getattr(processor, "image_processor", processor)
    width, height = size
    if not getattr(image_processor, "do_center_crop", False):
        return 0.0, 0.0, float(width), float(height)
    crop = image_processor.crop_size
    resized = image_processor.size
    shortest = resized.get("shortest_edge")
    if shortest is None:
        scale_x, scale_y = width / resized["width"], height / resized["height"]
    else:
        scale_x = scale_y = min(width, height) / shortest
    wide, high = crop["width"] * scale_x, crop["height"] * scale_y
    return (width - wide) / 2, (height - high) / 2, (width + wide) / 2, (height + high) / 2
