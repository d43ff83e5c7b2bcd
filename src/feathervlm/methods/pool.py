"""Average pooling, the control without any choice."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Grid, Layer, Pool, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class AveragePool(Method):
    """Average every block of stride x stride visual tokens into one, whatever it shows.

    The mean takes the position of the block's first cell. At equal numbers of tokens it keeps more localization than
    FastV, SparseVLM and VisionZip (RefCOCO at 128 and 64 tokens of 576, arXiv 2602.02951).

    Args:
        layer: Tokens are averaged before this layer; 0 is the input of the language model.
        stride: Side of a block; blocks at the border are smaller.
    """

    name: ClassVar[str] = "pool"
    paper: ClassVar[str] = "a control, reported in 2602.02951"
    budget_parameter: ClassVar[str | None] = None

    layer: Layer = 0
    stride: int = 2

    def schedule(self) -> Schedule:
        return Schedule(Stage(self.layer, Grid(self.stride), merge=Pool(self.stride)))
