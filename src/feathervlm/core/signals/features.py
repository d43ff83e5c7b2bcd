"""Feature vectors of the visual tokens."""

from dataclasses import dataclass
from typing import Literal

from feathervlm.core.signals.base import Signal

FeatureSource = Literal["vision", "projected", "hidden"]
"""Where `Features` come from."""


@dataclass(frozen=True)
class Features(Signal):
    """Feature vector of every visual token: (batch, visual, dim) float32.

    Args:
        source: "vision", patch features of the vision encoder before the projector; "projected", the embeddings that
            enter the language model; or "hidden", the states that enter the stage's layer.
    """

    source: FeatureSource = "vision"

    def describe(self) -> str:
        return {
            "vision": "patch features of the vision encoder, before the projector",
            "projected": "projected features, as they enter the language model",
            "hidden": "hidden states that enter the layer after the cut",
        }[self.source]
