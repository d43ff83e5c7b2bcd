"""Idefics 3 and SmolVLM: tiles marked with their row and column, then the overview after a mark of its own.

Frames of a video are images without tiles.
"""

from collections.abc import Sequence
from typing import Any

from feathervlm.families.tiles import Span, Tiles, up_to_overview


class Idefics3(Tiles):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`."""

    title = "Idefics 3, SmolVLM"
    model_types = ("idefics3", "smolvlm")

    @property
    def side(self) -> int:
        """Rows, and columns, of a tile after the connector has merged patches."""
        config = self.model.config
        return int(config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor)

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        """Return a sketch of every tile, except tiles that are padding of the batch, which are all zero."""
        tiles = arguments["pixel_values"].flatten(0, 1)
        return super().look(modality, {"pixel_values": tiles[(tiles != 0).flatten(1).any(1)]})

    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        return up_to_overview(ids, spans)
