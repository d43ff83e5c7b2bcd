"""Attention of the vision encoder's [CLS] token as the criterion, before the language model."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import Keep, Layer, Schedule, Stage, Top, VisionAttention, check_choice
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class FasterVLM(Method):
    """Keep the tokens that the vision encoder's [CLS] token looks at most, before the language model.

    Text plays no part. Where an encoder has no [CLS], the attention that a patch gets from all others takes its place.

    Paper and code: the authors' code gives the tokens that are left new, compact positions
    (`positions=renumber`); here they keep theirs.

    Args:
        layer: tokens leave before this layer of the language model.
        keep: fraction or number of visual tokens kept.
        encoder_layer: of the vision encoder; -2 is the last but one. A layer whose patches see a window only compares
            those of one window; take one of full attention there (Qwen2.5-VL: -1).
        positions: `preserve`, `renumber` or `stretch`.
    """

    name: ClassVar[str] = "fastervlm"
    paper: ClassVar[str] = "2412.01818"

    layer: Layer = 0
    keep: Keep = 0.25
    encoder_layer: int = -2
    positions: Literal["preserve", "renumber", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        """One stage."""
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        return Schedule(Stage(self.layer, Top(VisionAttention(self.encoder_layer), self.keep), self.positions))
