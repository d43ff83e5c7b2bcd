"""Aya Vision: tiles with a numbered mark before each, then the overview after a mark of its own."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.families.llava import selected
from feathervlm.families.tiles import Span, Tiles, up_to_overview


class AyaVision(Tiles):
    """`AyaVisionForConditionalGeneration`."""

    title = "Aya Vision"
    model_types = ("aya_vision",)

    @property
    def side(self) -> int:
        """Rows, and columns, of a tile after the projector has merged patches."""
        config = self.model.config
        return int(config.vision_config.image_size // config.vision_config.patch_size // config.downsample_factor)

    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        return up_to_overview(ids, spans)

    def states(self, output: Any) -> Tensor:
        """Return the states of the layer that the config selects."""
        return selected(output, self.model.config)
