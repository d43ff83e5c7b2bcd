"""HoloV: a share of the tokens for every part of the picture, larger where there is more to see."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import (
    FeatureSource,
    Keep,
    Layer,
    LocalVariance,
    Schedule,
    Stage,
    VisionAttention,
    Zone,
    check_choice,
    check_encoder_layer,
    check_int,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class HoloV(Method):
    """Keep the tokens that the vision encoder attends to most in each of several runs of the sequence.

    A run is a band of rows. Its number of tokens depends on the mean of attention plus `alpha` times the variety of its
    tokens; inside a run attention alone decides. It selects before the language model and does not read the text. Where
    an encoder has no [CLS], the attention that a patch receives from all patches is used.

    Paper and code: as in the code, shares are truncated and the runs with the largest weight take the tokens that do
    not divide. What a full run cannot take is lost there and padded with zeros; here it goes to the others. Variety is
    the variance of the cosines to the other tokens of the run, scaled to attention by their means over the image. The
    code's Qwen uses int(1024 / 576 * N / keep) runs instead of 16. Its LLaVA orders a run by attention and renumbers
    positions (`positions=renumber`); here tokens stay in order.

    Args:
        layer: Tokens leave before this layer of the language model.
        keep: Fraction or number of visual tokens kept.
        chunks: Number of runs.
        alpha: Weight of variety relative to attention.
        encoder_layer: Layer of the vision encoder; -2 is the last but one, a float is a fraction of its depth. In a
            layer with window attention patches of different windows are not compared; choose one with full attention
            there (Qwen2.5-VL: -1).
        features: `vision`, the encoder's as published, or `projected`.
        positions: `preserve`, `renumber` or `stretch`.
    """

    name: ClassVar[str] = "holov"
    paper: ClassVar[str] = "2510.02912 (NeurIPS 2025), obananas/HoloV"

    layer: Layer = 0
    keep: Keep = 0.25
    chunks: int = 16
    alpha: float = 0.09
    encoder_layer: int | float = -2
    features: FeatureSource = "vision"
    positions: Literal["preserve", "renumber", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        check_encoder_layer(self.encoder_layer, "encoder_layer")
        check_int(self.chunks, "chunks")
        attention = VisionAttention(self.encoder_layer)
        weight = LocalVariance(attention, "chunk", self.chunks, self.alpha, self.features)
        zones = Zone(attention, self.keep, "chunk", self.chunks, "proportional", weight, rounding="weight")
        return Schedule(Stage(self.layer, zones, self.positions))
