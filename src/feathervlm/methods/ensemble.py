"""The ensemble criterion of FEATHER's paper, one stage of FEATHER."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Grid, Keep, LastTokenAttention, Layer, Schedule, Stage, Top
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Ensemble(Method):
    """Keep the union of the best tokens by RoPE-free attention and a uniform grid, at one layer.

    It selects at an early layer, by the attention of the last text token in the layer before.

    Args:
        layer: Tokens leave before this layer.
        keep: Fraction or number of visual tokens kept by attention; the grid is added to them.
        stride: Stride of the uniform grid.
    """

    name: ClassVar[str] = "ensemble"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), phi_-R + phi_uniform"

    layer: Layer = 3 / 32
    keep: Keep = 0.25
    stride: int = 3

    def schedule(self) -> Schedule:
        no_rope = LastTokenAttention(rope=False, over="visual")
        return Schedule(Stage(self.layer, Top(no_rope, self.keep) | Grid(self.stride)))
