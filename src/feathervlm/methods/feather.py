"""FEATHER, the method that this project is named after."""

from dataclasses import dataclass, field
from typing import ClassVar

from feathervlm.core import (
    IF_SET,
    Grid,
    LastTokenAttention,
    Layer,
    Leave,
    Schedule,
    Stage,
    Top,
    Union,
    check_choice,
    check_fraction,
    check_layers,
)
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
        leave: What becomes of the other tokens: `drop`, or, which is not in the paper, `wait` for the second stage,
            which then chooses among all tokens with its own attention, or `freeze` with their keys and values readable.
            The second stage keeps a share of what it chooses from.
    """

    name: ClassVar[str] = "feather"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), markendo/FEATHER"

    layers: tuple[Layer, Layer] = (0.25, 0.5)
    keep: float = 0.3
    stride: int = 3
    fixed: bool = False
    leave: Leave = field(default="drop", metadata=IF_SET)

    def schedule(self) -> Schedule:
        check_fraction(self.keep)
        check_layers(self.layers, "8+16", count=2)
        check_choice(self.leave, ("drop", "wait", "freeze"), "leave")
        no_rope = LastTokenAttention(rope=False, over="visual")
        later = LastTokenAttention(rope=False, over="visual", layer="K") if self.leave == "wait" else no_rope
        first, second = self.layers
        return Schedule(
            Stage(
                at=first,
                select=Union(Top(no_rope, keep=self.keep), Grid(stride=self.stride), fixed=self.fixed),
                leave=self.leave,
            ),
            Stage(
                at=second,
                select=Top(later, keep=self.keep**2, of="current"),
                leave="drop" if self.leave == "wait" else self.leave,  # nothing comes back from the last stage
            ),
        )
