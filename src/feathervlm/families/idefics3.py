"""Idefics 3 and SmolVLM: tiles marked with their row and column, then the overview after a mark of its own.

Frames of a video are images without tiles.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from feathervlm.core.errors import Unprunable
from feathervlm.families.tiles import Span, Tiles, up_to_overview


class Idefics3(Tiles):
    """`Idefics3ForConditionalGeneration`, `SmolVLMForConditionalGeneration`, and encoders of the same pictures."""

    title = "Idefics 3, SmolVLM, ModernVBERT"
    model_types = ("idefics3", "smolvlm", "modernvbert", "ultravbert")
    limits = "ModernVBERT and UltraVBERT encode text in both directions and write none"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        averages = getattr(model.config, "classifier_pooling", None) == "mean"
        if averages and "SequenceClassification" in type(model).__name__:
            raise Unprunable(
                f"{type(model).__name__} averages over all tokens (classifier_pooling='mean'), also over "
                "dropped ones; prune its base model and average over report.row_mask."
            )

    @property
    def side(self) -> int:
        """Rows, and columns, of a tile after the connector has merged patches."""
        config = self.model.config
        factor = getattr(config, "scale_factor", None) or config.pixel_shuffle_factor
        return int(config.vision_config.image_size // config.vision_config.patch_size // factor)

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        """Return a sketch of every tile, except tiles that are padding of the batch, which are all zero."""
        tiles = arguments["pixel_values"].flatten(0, 1)
        return super().look(modality, {"pixel_values": tiles[(tiles != 0).flatten(1).any(1)]})

    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        return up_to_overview(ids, spans)
