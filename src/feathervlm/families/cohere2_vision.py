"""Command A Vision (Cohere2 Vision): tiles with a line break after each, the overview last.

Its image processor needs torchvision, so the tests prepare pictures by hand, as its code does.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.families.aya_vision import AyaVision
from feathervlm.families.tiles import Span, Tiles


class Cohere2Vision(AyaVision):
    """`Cohere2VisionForConditionalGeneration`."""

    title = "Command A Vision"
    model_types = ("cohere2_vision",)
    text_types = ("cohere2", "cohere2_moe")

    def rotates(self, layer: int) -> bool:
        """Return True for sliding windows; other layers rotate only if the config forces them to."""
        module = self.decoder_view.attention_module(layer)
        return module.sliding_window is not None or bool(getattr(module, "force_rope", False))

    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        """Count the spans that have a single token between them as tiles of one image."""
        counts: list[int] = []
        end = -2
        for start, length in spans:
            if start == end + 1:
                counts[-1] += 1
            else:
                counts.append(1)
            end = start + length
        return counts

    def states(self, output: Any) -> Tensor:
        """Return the states of the last layer."""
        return Tiles.states(self, output)
