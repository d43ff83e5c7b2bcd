"""Granite 4 Vision: LLaVA-NeXT's two views, reduced by a window query-former, with features added in many layers.

Embeddings of visual tokens start at zero. Each entry of `deepstack_layer_map`, and each of four shifted samples of one
layer of the encoder, is added before a decoder layer of its own, so hidden states have to be whole there.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.engine.call import VisualInput
from feathervlm.families.llava_next import LlavaNext
from feathervlm.families.runs import PlaceholderRun


class Granite4Vision(LlavaNext):
    """`Granite4VisionForConditionalGeneration`."""

    title = "Granite 4 Vision"
    model_types = ("granite4_vision",)
    decoder = "full attention; features added before many layers"

    @property
    def side(self) -> int:
        """Rows, and columns, of a tile that the query-former has reduced."""
        return int(super().side * Fraction(self.model.config.downsample_rate))

    @property
    def injected(self) -> int:
        """The layer that precedes the last one before which features are added."""
        config = self.model.config
        return max(*(layer for _, layer in config.deepstack_layer_map), *config.spatial_target_layers) - 1

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        raise Unprunable(
            "Granite 4 Vision takes features of several layers of its encoder; use the projected ones "
            "(features=projected)."
        )
