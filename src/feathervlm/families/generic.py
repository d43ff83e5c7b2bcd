"""Any other decoder-only model whose prompts hold one placeholder per feature: what can be inferred, and is checked.

Every run of placeholders is taken for a picture of its own (a tile, where a model cuts pictures) in a square grid. A
run that is no square is refused, as is a prompt whose runs do not add up to the features that the encoder makes.
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
        """One square per run."""
        spans = [span for ids in prompts(call, visual) for span in spans_of(ids, self.token(visual.modality))]
        return [square(length) for _, length in spans]

    @classmethod
    def shown(cls, processor: Any, size: tuple[int, int]) -> Box:
        return center_crop(processor, size)

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Whether a model has what this needs."""
        config: Any = model.config
        has_token = any(hasattr(config, name) for name in ("image_token_id", "image_token_index"))
        return has_token and hasattr(model.base_model, "get_image_features") and not config.is_encoder_decoder
