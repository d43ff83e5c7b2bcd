"""LLaVA-NeXT (1.6): an overview of the picture, then a sharper view in tiles with its padding cut off.

The sharper view ends every row with a line break, an `<image>` placeholder that shows nothing: text here. How many
rows and columns are left follows from the original size, `image_sizes`.
"""

from collections.abc import Sequence

from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from feathervlm.core.layout import Box, Plane
from feathervlm.engine.family import Call, Visual
from feathervlm.families.base import Placeholders, Run


class LlavaNext(Placeholders):
    """`LlavaNextForConditionalGeneration`."""

    title = "LLaVA-NeXT"
    model_types = ("llava_next",)
    geometry = "an overview and an unpadded view in tiles; line breaks are text"

    @property
    def side(self) -> int:
        """Rows, and columns, of a tile."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def runs(self, visual: Visual, call: Call) -> list[Run]:
        """Overview and unpadded view of every image."""
        return [self.run(size) for size in visual.given["image_sizes"].tolist()]

    def run(self, size: Sequence[int]) -> Run:
        """The placeholders of a picture of (height, width) pixels."""
        config = self.model.config
        tiles = get_anyres_image_grid_shape(tuple(size), config.image_grid_pinpoints, config.vision_config.image_size)
        rows, cols, box = unpadded(size, (tiles[0] * self.side, tiles[1] * self.side))
        rows, cols = self.limited(rows, cols)
        overview = Plane((1, self.side, self.side))
        breaks = (overview.size + row * (cols + 1) + cols for row in range(rows))
        return Run((overview, Plane((1, rows, cols), box)), tuple(breaks))

    def limited(self, rows: int, cols: int) -> tuple[int, int]:
        """The sides of the sharper view that is shown of so many rows and columns."""
        return rows, cols


def unpadded(size: Sequence[int], canvas: tuple[int, int]) -> tuple[int, int, Box]:
    """Rows and columns of a canvas that a centred picture of (height, width) touches, and the box that they cover."""
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
