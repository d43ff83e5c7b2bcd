"""Random tokens, the control."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Keep, Layer, Random, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class RandomKeep(Method):
    """Keep random visual tokens, the control for any criterion.

    Args:
        layer: Tokens leave before this layer.
        keep: Fraction or number of visual tokens kept.
        seed: Seed of the choice, which is the same in any batch.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "a control"

    layer: Layer = 3 / 32
    keep: Keep = 0.25
    seed: int = 0

    def schedule(self) -> Schedule:
        return Schedule(Stage(self.layer, Random(self.keep, self.seed)))
