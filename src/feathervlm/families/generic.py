"""Any other decoder-only model whose prompts have one placeholder per feature: its geometry is inferred and checked.

Every run of placeholders counts as a picture of its own (a tile, if a model cuts pictures) in a square grid. A run that
is not a square is refused, as is a prompt whose runs do not add up to the features that the encoder makes.
"""

from typing import Any

from transformers import PreTrainedModel

from feathervlm.core.layout import Box
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.placement import center_crop
from feathervlm.families.runs import PlaceholderRun, square
from feathervlm.families.tiles import prompts, spans_of


class Generic(Placeholders):
    """A model that no family knows."""

    title = "any other"
    crops = True
    geometry = "every run of placeholders one square grid"
    limits = "refused where a run is no square"
    notes = ("no family knows this model: each run of image placeholders counts as a picture of its own",)

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        spans = [span for ids in prompts(call, visual) for span in spans_of(ids, self.token(visual.modality))]
        return [square(length) for _, length in spans]

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        return center_crop(processor, size)

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Return whether a model has the config and the methods that this family reads."""
        config: Any = model.config
        has_token = any(hasattr(config, name) for name in ("image_token_id", "image_token_index"))
        return has_token and hasattr(model.base_model, "get_image_features") and not config.is_encoder_decoder
