"""DivPrune: the most diverse tokens, whatever they show."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import FeatureSource, Keep, Layer, MaxMin, Schedule, Stage, check_choice
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class DivPrune(Method):
    """Keep visual tokens far apart: again and again the one whose nearest kept token is farthest.

    Distance is 1 - cosine of what the projector gives out. Text plays no part, no attention is read, and any model
    can be pruned so.

    Paper and code: the first token is the one whose nearest neighbour of all is farthest, as in the code. The authors
    round the count, here it is cut off as everywhere. Their LLaVA gives the tokens that are left new, compact positions
    (`positions=renumber`), their Qwen keeps them.

    Args:
        layer: tokens leave before this layer.
        keep: fraction or number of visual tokens kept.
        features: `projected`, as published, or `vision`, the encoder's.
        positions: `preserve`, `renumber` or `stretch`.
    """

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "2503.02175 (CVPR 2025), vbdi/divprune"

    layer: Layer = 0
    keep: Keep = 0.098
    features: FeatureSource = "projected"
    positions: Literal["preserve", "renumber", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        """One stage."""
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        return Schedule(Stage(self.layer, MaxMin(self.keep, self.features), self.positions))
