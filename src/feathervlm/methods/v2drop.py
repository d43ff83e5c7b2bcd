"""V2Drop: drop the tokens that a layer hardly changes."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from feathervlm.core import (
    Candidates,
    Criterion,
    Features,
    Keep,
    Layer,
    LayerStates,
    Schedule,
    Stage,
    Top,
    check_fraction,
    check_layers,
)
from feathervlm.methods.base import Method

AFTER, BEFORE = Features("hidden"), LayerStates("entry")


@dataclass(frozen=True)
class Variation(Criterion):
    """How far the layer before the cut has moved a token: the Euclidean norm of the difference of its states."""

    def signals(self) -> tuple[Features, LayerStates]:
        return AFTER, BEFORE

    def score(self, tokens: Candidates) -> Tensor:
        after, before = (tokens.signals.read(states).float() for states in self.signals())
        moved: Tensor = (after - before.to(after.device)).norm(dim=-1)
        return moved.masked_fill(~tokens.present.to(moved.device), 0)


@dataclass(frozen=True)
class V2Drop(Method):
    """Keep the tokens that the last layer has changed most, half of them twice, and late in the model a single one.

    A score is the length of what a layer adds to a token, which does not depend on positions. It reads neither
    attention nor text.

    Paper and code: layers and shares are those of the code for LLaVA-1.5, 3, 17 and 22 of 32, of which the third keeps
    one token.

    Args:
        layers: Tokens leave before each of these; the last stage keeps only a few.
        keep: Share of the current tokens kept at each layer but the last.
        last: Fraction or number of the original tokens kept at the last layer; one of 576 by default.
    """

    name: ClassVar[str] = "v2drop"
    paper: ClassVar[str] = "2509.01552 (CVPR 2026), xuyang-liu16/V2Drop"

    layers: tuple[Layer, ...] = (3 / 32, 17 / 32, 22 / 32)
    keep: float = 0.5
    last: Keep = 1 / 576

    def schedule(self) -> Schedule:
        check_fraction(self.keep)
        check_layers(self.layers, "3+17+22")
        *early, late = self.layers
        stages = [Stage(layer, Top(Variation(), self.keep, of="current")) for layer in early]
        return Schedule(*stages, Stage(late, Top(Variation(), self.last)))
