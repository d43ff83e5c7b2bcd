"""Criteria of IVC-Prune: which positions the rotation favours, and which tokens have the values of the text.

Neither reads attention: the first knows nothing of the picture, the second nothing of positions. Every image is scored
by itself. They know nothing of how many tokens stay.
"""

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

    Positions where the cosines are large together are rotated least (the real axis), those with large sines by a
    quarter turn: an implicit frame of visual coordinates. The score is the same for every prompt of one form.

    Args:
        of: "cos" or "sin".

    Raises:
        PruningError: if it is neither.
    """

    of: Wave = "cos"

    def __post_init__(self) -> None:
        check_choice(self.of, get_args(Wave), "of")

    def signals(self) -> tuple[Signal, ...]:
        """The rotary table."""
        return (RotaryTable(self.of),)

    def score(self, tokens: Candidates) -> Tensor:
        """The means: (batch, visual)."""
        return to_float64(tokens.signals.read(RotaryTable(self.of)), tokens.present).mean(-1).float()
