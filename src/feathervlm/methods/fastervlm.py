"""FasterVLM: the [CLS] attention of the vision encoder."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import Keep, Layer, Schedule, Stage, Top, VisionAttention, check_choice
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class FasterVLM(Method):
    """Keep the tokens that the vision encoder's [CLS] token attends to most, before the language model.

    It does not read the text. Where an encoder has no [CLS], the attention that a patch receives from all patches is
    used.

    Paper and code: the authors' code renumbers positions (`positions=renumber`); here tokens keep theirs.

    Args:
        layer: Tokens leave before this layer of the language model.
        keep: Fraction or number of visual tokens kept.
        encoder_layer: Layer of the vision encoder; -2 is the last but one. In a layer with window attention patches of
            different windows are not compared; choose one with full attention there (Qwen2.5-VL: -1).
        positions: `preserve`, `renumber` or `stretch`.
    """

    name: ClassVar[str] = "fastervlm"
    paper: ClassVar[str] = "2412.01818"

    layer: Layer = 0
    keep: Keep = 0.25
    encoder_layer: int = -2
    positions: Literal["preserve", "renumber", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        return Schedule(Stage(self.layer, Top(VisionAttention(self.encoder_layer), self.keep), self.positions))
