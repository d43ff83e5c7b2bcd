"""VisiPruner: tokens are kept by what they contribute to the last token of the prompt."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Contribution, Keep, KeepNone, Layer, Schedule, Stage, Threshold, Top, check_keep
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class VisiPruner(Method):
    """Keep the tokens whose values, weighted with the attention to them, add most to the last prompt token.

    The contribution of a token is the length of its part of the output of attention, before the output projection: of
    attention times value, all heads side by side. Attention sinks have small values, so they contribute little.

    Paper and code: the authors find the layer where the text starts to read the picture for every prompt (the first
    from 7 on in which leaving out one token turns the output by a cosine below .995), keep what contributes more than
    .2, and let all tokens leave once they change nothing. They also hide the picture from the text before layer 6. Here
    both layers are parameters, and by default a share is kept, because lengths differ between models.

    Args:
        layer: Tokens leave before this layer; the layer before it scores.
        keep: Fraction or number of visual tokens kept.
        above: Contribution above which tokens are kept, in place of `keep`; None keeps a share.
        exit: Layer before which all visual tokens leave; None for no such layer.
    """

    name: ClassVar[str] = "visipruner"
    paper: ClassVar[str] = "2510.17205 (EMNLP 2025), EIT-NLP/VisiPruner"

    layer: Layer = 8 / 32
    keep: Keep = 0.25
    above: float | None = None
    exit: Layer | None = None

    def schedule(self) -> Schedule:
        check_keep(self.keep)
        score = Contribution()
        select = Top(score, self.keep) if self.above is None else Threshold(score, self.above)
        leave = [] if self.exit is None else [Stage(self.exit, KeepNone())]
        return Schedule(Stage(self.layer, select), *leave)
