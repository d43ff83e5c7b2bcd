"""GreedyPrune: the best tokens by attention that are not too similar to each other."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import FeatureSource, GreedyThreshold, Keep, LastTokenAttention, Layer, Schedule, Stage, Support
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class GreedyPrune(Method):
    """Keep the tokens that the last text token attends to most, skipping those too similar to a kept one.

    It maximises the sum of attention over sets in which no two tokens have a cosine above `tau`, greedily: the best
    remaining token stays, and tokens too similar to it are skipped. If too few remain, the best of the skipped tokens
    fill the budget. It selects at an early layer.

    Paper and code: no code is known. The objective and the greedy rule are the paper's. This library chose the
    attention of the last prompt token as the saliency (sources disagree: attention from text, or its cosine), the
    projected features for the comparison, FastV's layer, `tau`, and how the budget is filled.

    Args:
        layer: Tokens leave before this layer.
        keep: Fraction or number of visual tokens kept.
        tau: Cosine above which two tokens are too similar; 1 is FastV.
        rope: Whether q and k are rotated for the score, as in the layer itself.
        over: Keys of the softmax: `visual` or `all`.
        features: `projected`, or `vision`, the encoder's.
    """

    name: ClassVar[str] = "greedyprune"
    paper: ClassVar[str] = "2506.13166"

    layer: Layer = 3 / 32
    keep: Keep = 0.25
    tau: float = 0.9
    rope: bool = True
    over: Support = "visual"
    features: FeatureSource = "projected"

    def schedule(self) -> Schedule:
        attention = LastTokenAttention(rope=self.rope, over=self.over)
        return Schedule(Stage(self.layer, GreedyThreshold(attention, self.keep, self.tau, self.features)))
