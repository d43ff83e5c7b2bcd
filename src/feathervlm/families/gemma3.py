"""Gemma 3: one square grid of pooled patches; most decoder layers see a sliding window.

Crops of pan-and-scan are images of their own, after the whole picture. Only the layers of full attention (every
sixth) can score, so a criterion reads the nearest one before its stage.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_square
from feathervlm.families.runs import PlaceholderRun, grid


class Gemma3(Placeholders):
    """`Gemma3ForConditionalGeneration`."""

    title = "Gemma 3"
    model_types = ("gemma3",)
    geometry = "one square grid; crops of pan-and-scan count as images"
    decoder = "sliding windows, every sixth layer full"
    caches = ("dynamic",)

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        side = isqrt(self.model.config.mm_tokens_per_image)
        return [grid(side, side)] * len(visual.given["pixel_values"])

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, pooled."""
        return merge_square(output.last_hidden_state, isqrt(self.model.config.mm_tokens_per_image))
