"""VisPruner: half of the tokens for what the vision encoder looks at, half for what else there is to see."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import (
    Dedup,
    FeatureSource,
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
class VisPruner(Method):
    """Keep the tokens that the vision encoder looks at most, and fill up with the least duplicated of the others.

    The others are paired up by rank, and in rounds the most similar to a partner leave, until the budget is met. Text
    plays no part. Where an encoder has no [CLS], the attention that a patch gets from all others takes its place.

    Paper and code: as in the code, at most 8 tokens leave in a round. The code fails where an odd number is left; here
    the one without a partner counts to the first half. It gives the tokens that are left new, compact positions
    (`positions=renumber`).

    Args:
        layer: tokens leave before this layer of the language model.
        keep: fraction or number of visual tokens kept.
        important: share of these that goes by attention.
        per_round: duplicates that leave in one round, at most.
        encoder_layer: of the vision encoder; -2 is the last but one, a float a fraction of its depth. A layer whose
            patches see a window only compares those of one window; take one of full attention there (Qwen2.5-VL: -1).
        features: `vision`, the encoder's as published, or `projected`.
        positions: `preserve`, `renumber` or `stretch`.
    """

    name: ClassVar[str] = "vispruner"
    paper: ClassVar[str] = "2412.01818 (ICCV 2025), Theia-4869/VisPruner"

    layer: Layer = 0
    keep: Keep = 0.25
    important: float = 0.5
    per_round: int = 8
    encoder_layer: int | float = -2
    features: FeatureSource = "vision"
    positions: Literal["preserve", "renumber", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        """One stage."""
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        check_encoder_layer(self.encoder_layer, "encoder_layer")
        check_keep(self.keep)
        check_fraction(self.important, "important")
        attention = VisionAttention(self.encoder_layer)
        rest = Dedup(attention, self.keep, self.features, self.per_round)
        return Schedule(Stage(self.layer, Top(attention, part_of(self.keep, self.important)) >> rest, self.positions))
