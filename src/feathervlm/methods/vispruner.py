"""VisPruner: half of the tokens by the attention of the vision encoder, half by how little they are duplicated."""

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
    """Keep the tokens that the vision encoder attends to most, and fill up with the least duplicated of the others.

    The others are paired up by rank, and in rounds the tokens most similar to their partners leave, until the budget is
    met. It selects before the language model and does not read the text. Where an encoder has no [CLS], the attention
    that a patch receives from all patches is used.

    Paper and code: as in the code, at most 8 tokens leave in a round. The code fails where an odd number remains; here
    the token without a partner counts to the first half. It renumbers positions (`positions=renumber`).

    Args:
        layer: Tokens leave before this layer of the language model.
        keep: Fraction or number of visual tokens kept.
        important: Share of these that is kept by attention.
        per_round: Largest number of duplicates that leave in one round.
        encoder_layer: Layer of the vision encoder; -2 is the last but one, a float is a fraction of its depth. In a
            layer with window attention patches of different windows are not compared; choose one with full attention
            there (Qwen2.5-VL: -1).
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
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        check_encoder_layer(self.encoder_layer, "encoder_layer")
        check_keep(self.keep)
        check_fraction(self.important, "important")
        attention = VisionAttention(self.encoder_layer)
        rest = Dedup(attention, self.keep, self.features, self.per_round)
        return Schedule(Stage(self.layer, Top(attention, part_of(self.keep, self.important)) >> rest, self.positions))
