"""FEATHER, the method that this project is named after."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Grid, LastTokenAttention, Layer, Schedule, Stage, Top, Union, check_fraction, check_layers
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Feather(Method):
    """Two-stage pruning by RoPE-free attention, with a uniform grid kept at the first stage.

    Early attention with RoPE favours the bottom of the image. FEATHER scores without RoPE, adds a uniform grid while
    scores are still weak, and prunes most tokens later, when they are good. It selects during prefill, by the attention
    of the last text token in the layer before each stage.

    Paper and code: the second stage keeps keep**2 of the *survivors*, grid tokens included. The union has no fixed
    size; `fixed` fills it up to its largest size with the next best tokens, so that the count is known beforehand (no
    device sync, one compiled graph).

    Args:
        layers: The two layers before which tokens leave.
        keep: Fraction of the visual tokens kept by attention at the first stage.
        stride: Stride of the uniform grid.
        fixed: Whether the union is filled up to a size that does not depend on the data.
    """

    name: ClassVar[str] = "feather"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), markendo/FEATHER"

    layers: tuple[Layer, Layer] = (0.25, 0.5)
    keep: float = 0.3
    stride: int = 3
    fixed: bool = False

    def schedule(self) -> Schedule:
        check_fraction(self.keep)
        check_layers(self.layers, "8+16", count=2)
        no_rope = LastTokenAttention(rope=False, over="visual")
        first, second = self.layers
        return Schedule(
            Stage(
                at=first,
                select=Union(Top(no_rope, keep=self.keep), Grid(stride=self.stride), fixed=self.fixed),
            ),
            Stage(at=second, select=Top(no_rope, keep=self.keep**2, of="current")),
        )
