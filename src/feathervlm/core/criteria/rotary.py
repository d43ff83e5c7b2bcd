"""The criterion of positions: which of them the rotation favours (IVC-Prune)."""

from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.signals import RotaryTable, Signal, Wave
from feathervlm.core.tensor_ops import to_float64
from feathervlm.core.validation import check_choice


@dataclass(frozen=True)
class RotaryPhase(Criterion):
    """Mean over the channels of the cosines, or the sines, that rotate a token (IVC-Prune, arXiv 2602.03060).

    Positions with large cosines are rotated least (the real axis), positions with large sines by a quarter turn: an
    implicit frame of visual coordinates. The score is the same for every prompt of one form.

    Args:
        of: "cos" or "sin".

    Raises:
        PruningError: If `of` is neither.
    """

    of: Wave = "cos"

    def __post_init__(self) -> None:
        check_choice(self.of, get_args(Wave), "of")

    def signals(self) -> tuple[Signal, ...]:
        return (RotaryTable(self.of),)

    def score(self, tokens: Candidates) -> Tensor:
        return to_float64(tokens.signals.read(RotaryTable(self.of)), tokens.present).mean(-1).float()
