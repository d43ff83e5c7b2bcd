"""HiPrune: objects from a middle layer of the vision encoder, cells around them, and a deep layer's best tokens."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import (
    Dilate,
    Keep,
    Layer,
    Schedule,
    Stage,
    Top,
    VisionAttention,
    check_choice,
    check_encoder_layer,
    check_fraction,
    check_keep,
    part_of,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class HiPrune(Method):
    """Keep anchors of the vision encoder's middle layer with the four cells around each, and fill up by a deep layer.

    Anchors receive the most attention from all patches in the middle layer, where encoders attend to objects; the deep
    layer represents the whole picture. It selects before the language model and does not read the text.

    Paper and code: an anchor at the edge has fewer neighbours here; in the code cells wrap around into the next row or
    image. The number of anchors, keep * alpha / 5, is rounded there and truncated here (at least one). The authors'
    LLaVA renumbers positions (`positions=renumber`), their Qwen keeps them.

    Args:
        layer: Tokens leave before this layer of the language model.
        keep: Fraction or number of visual tokens kept.
        alpha: Share of these for anchors and the cells around them.
        object_layer: Middle layer of the vision encoder, counted from 0, or a fraction of its depth. 1/3 is the
            published layer of CLIP-L (the ninth of 24); for Qwen2.5-VL it is 15.
        encoder_layer: Deep layer; -2 is LLaVA's, for Qwen2.5-VL it is -1.
        positions: `preserve`, `renumber` or `stretch`.
    """

    name: ClassVar[str] = "hiprune"
    paper: ClassVar[str] = "2508.00553, Danielement321/HiPrune"

    layer: Layer = 0
    keep: Keep = 0.25
    alpha: float = 0.1
    object_layer: int | float = 1 / 3
    encoder_layer: int | float = -2
    positions: Literal["preserve", "renumber", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        check_encoder_layer(self.object_layer, "object_layer")
        check_encoder_layer(self.encoder_layer, "encoder_layer")
        check_keep(self.keep)
        check_fraction(self.alpha, "alpha")
        anchors = Top(VisionAttention(self.object_layer, "received"), part_of(self.keep, self.alpha / 5))
        registers = Top(VisionAttention(self.encoder_layer, "received"), self.keep)
        return Schedule(Stage(self.layer, Dilate(anchors) >> registers, self.positions))
