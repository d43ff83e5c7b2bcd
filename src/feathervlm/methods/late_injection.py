"""Late injection: visual tokens skip the first layers, where the text does not read them."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Keep, KeepNone, LastTokenAttention, Layer, Schedule, Stage, Top, check_keep
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class LateInjection(Method):
    """Let visual tokens enter at a middle layer, as they left the projector, and keep the best of them.

    Up to that layer all visual tokens wait. There its own attention of the last prompt token chooses the tokens that
    enter; the rest is dropped. Positions are the original ones.

    Paper and code: HiDrop trains the model with late injection, a concave pyramid of budgets and a differentiable
    choice, and lets all tokens leave early; its layers are not public. This is its injection alone, without training.

    Args:
        layer: Visual tokens enter before this layer.
        keep: Fraction or number of visual tokens that enter.
        exit: Layer before which all visual tokens leave; None for no such layer.
    """

    name: ClassVar[str] = "late-injection"
    paper: ClassVar[str] = "2602.23699 (ICLR 2026), EIT-NLP/HiDrop"

    layer: Layer = 8 / 32
    keep: Keep = 0.5
    exit: Layer | None = None

    def schedule(self) -> Schedule:
        check_keep(self.keep)
        enter = Stage(self.layer, Top(LastTokenAttention(layer="K"), self.keep))
        leave = [] if self.exit is None else [Stage(self.exit, KeepNone())]
        return Schedule(Stage(0, KeepNone(), leave="wait"), enter, *leave)
