"""Uniform sampling, the baseline that beats early attention in localization."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Grid, Layer, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Uniform(Method):
    """Keep every stride-th row and column of the image, whatever it shows.

    Rows and columns start at the top left corner; of 27 x 27 tokens 729, 196, 81, 49 and 36 remain for strides 1 to 5.

    Args:
        layer: Tokens leave before this layer.
        stride: Distance of kept rows and columns.
    """

    name: ClassVar[str] = "uniform"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), phi_uniform"
    budget_parameter: ClassVar[str | None] = None

    layer: Layer = 3 / 32
    stride: int = 2

    def schedule(self) -> Schedule:
        return Schedule(Stage(self.layer, Grid(self.stride)))
