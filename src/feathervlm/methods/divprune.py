"""DivPrune: the most diverse tokens."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import FeatureSource, Keep, Layer, MaxMin, Schedule, Stage, check_choice
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class DivPrune(Method):
    """Keep visual tokens far apart: repeatedly the token whose nearest kept token is farthest.

    Distance is 1 - cosine of the projected features. It selects before the language model and reads neither text nor
    attention, so every model supports it.

    Paper and code: as in the code, the first token is the one whose nearest neighbour among all tokens is farthest. The
    authors round the count; here it is truncated, as everywhere. Their LLaVA renumbers positions
    (`positions=renumber`), their Qwen keeps them.

    Args:
        layer: Tokens leave before this layer.
        keep: Fraction or number of visual tokens kept.
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
        check_choice(self.positions, ("preserve", "renumber", "stretch"), "positions")
        return Schedule(Stage(self.layer, MaxMin(self.keep, self.features), self.positions))
