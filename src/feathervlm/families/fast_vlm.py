"""FastVLM: one square grid from a convolutional tower."""

from math import isqrt

from feathervlm.engine.family import Call, Visual
from feathervlm.families.base import Placeholders, Run, grid


class FastVLM(Placeholders):
    """`FastVlmForConditionalGeneration`."""

    title = "FastVLM"
    model_types = ("fast_vlm",)

    def runs(self, visual: Visual, call: Call) -> list[Run]:
        """As many tokens as the config says."""
        side = isqrt(self.model.config.image_seq_length)
        return [grid(side, side)] * len(visual.given["pixel_values"])
