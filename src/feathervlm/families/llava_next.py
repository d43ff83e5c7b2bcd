"""LLaVA-NeXT (1.6): an overview of the picture, then a sharper view in tiles with its padding cut off.

The sharper view ends every row with a line break, an `<image>` placeholder that shows nothing and counts as text. The
number of rows and columns without padding follows from the original size, `image_sizes`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import Box, Plane
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.llava import selected
from feathervlm.families.runs import PlaceholderRun


class LlavaNext(Placeholders):
    """`LlavaNextForConditionalGeneration`."""

    title = "LLaVA-NeXT"
    model_types = ("llava_next",)
    geometry = "an overview and an unpadded view in tiles; line breaks are text"

    @property
    def side(self) -> int:
        """Rows, and columns, of the tokens of a tile."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        return [self.run(size) for size in visual.given["image_sizes"].tolist()]

    def tiles(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the (rows, cols) of the tiles of a picture of (height, width) pixels."""
        high, wide = select_best_resolution(tuple(size), self.model.config.image_grid_pinpoints)
        side = self.model.config.vision_config.image_size
        return high // side, wide // side

    def run(self, size: Sequence[int]) -> PlaceholderRun:
        """Return the placeholders of a picture of (height, width) pixels."""
        down, across = self.tiles(size)
        rows, cols, box = unpadded(size, (down * self.side, across * self.side))
        rows, cols = self.limited(rows, cols)
        overview = Plane((1, self.side, self.side))
        breaks = (overview.size + row * (cols + 1) + cols for row in range(rows))
        return PlaceholderRun((overview, Plane((1, rows, cols), box)), tuple(breaks))

    def limited(self, rows: int, cols: int) -> tuple[int, int]:
        """Return the rows and columns of the sharper view after a limit on its tokens; this model has none."""
        return rows, cols

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the selected layer for overview and tiles, without the padding."""
        states = selected(output, self.model.config)
        features, first = [], 0
        for size, run in zip(visual.given["image_sizes"].tolist(), runs, strict=True):
            down, across = self.tiles(size)
            tiles = states[first + 1 : first + 1 + down * across].unflatten(1, (self.side, self.side))
            whole = tiles.unflatten(0, (down, across)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
            rows, cols, _ = unpadded(size, tuple(whole.shape[:2]))
            top, left = (whole.shape[0] - rows) // 2, (whole.shape[1] - cols) // 2
            visible = whole[top : top + rows, left : left + cols]
            if visible.shape[:2] != run.picture[-1].shape[1:]:
                raise Unprunable(
                    f"{self.title} scales large pictures down after its encoder; use the projected features "
                    "(features=projected)."
                )
            features += [states[first], visible.flatten(0, 1)]
            first += 1 + down * across
        return torch.cat(features)


def unpadded(size: Sequence[int], canvas: tuple[int, int]) -> tuple[int, int, Box]:
    """Return the rows and columns of a canvas that a centered picture touches, and the box that they cover.

    Args:
        size: (height, width) of the picture.
        canvas: (rows, cols) of the canvas.
    """
    (height, width), (rows, cols) = size, canvas
    if width / height > cols / rows:
        high = height * cols / width
        padding = (rows - int(round(high, 7))) // 2
        above = ((rows - high) / 2 - padding) / high
        return rows - 2 * padding, cols, (0.0, -above, 1.0, 1.0 + above)
    wide = width * rows / height
    padding = (cols - int(round(wide, 7))) // 2
    aside = ((cols - wide) / 2 - padding) / wide
    return rows, cols - 2 * padding, (-aside, 0.0, 1.0 + aside, 1.0)
