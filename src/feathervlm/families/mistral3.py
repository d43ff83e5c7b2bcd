"""Mistral Small 3 (Pixtral tower): one grid of the picture's own shape; rows end with `[IMG_BREAK]`, which is text."""

from feathervlm.engine.family import Call, Visual
from feathervlm.families.base import Placeholders, Run, grid


class Mistral3(Placeholders):
    """`Mistral3ForConditionalGeneration`."""

    title = "Mistral Small 3, Pixtral"
    model_types = ("mistral3",)
    geometry = "one grid of the picture's own shape; row breaks are text"

    def runs(self, visual: Visual, call: Call) -> list[Run]:
        """Rows and columns from the size that the processor chose."""
        config = self.model.config
        pixels = config.vision_config.patch_size * config.spatial_merge_size
        return [grid(height // pixels, width // pixels) for height, width in visual.given["image_sizes"].tolist()]
