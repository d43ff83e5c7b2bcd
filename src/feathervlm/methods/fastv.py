"""FastV, the method whose early pruning FEATHER examines."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Keep, LastTokenAttention, Layer, Schedule, Stage, Support, Top
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class FastV(Method):
    """Keep the visual tokens that the last text token attends to most, after an early layer.

    Scores are the attention row of the layer before the cut, mean over heads.

    Paper and code: FastV takes the softmax over `all` keys; FEATHER's rerun of it, and the default here, over the
    `visual` ones, where every head has the same weight. The authors' code with a cache is implemented (pruned once,
    during prefill). `rope=false` is FEATHER's phi_-R at one layer.

    Args:
        layer: Tokens leave before this layer.
        keep: Fraction or number of visual tokens kept.
        rope: Whether q and k are rotated for the score, as in the layer itself.
        over: Keys of the softmax: `visual` or `all`.
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "2403.06764 (ECCV 2024), pkunlp-icler/FastV"

    layer: Layer = 3 / 32
    keep: Keep = 0.25
    rope: bool = True
    over: Support = "visual"

    def schedule(self) -> Schedule:
        return Schedule(Stage(self.layer, Top(LastTokenAttention(rope=self.rope, over=self.over), self.keep)))
