"""AiluRus: the vision encoder runs on anchors from an early layer on; the language model gets every token."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import DensityPeakMerging, KeepAll, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class AiluRus(Method):
    """Run the vision encoder on the density peaks of an early layer, then give every patch what its anchor has become.

    Patches go into an anchor near them that is like them, so plain regions become coarse and contours stay fine. Only
    the encoder gets faster: the language model sees as many tokens as ever, and any other pruning may follow.

    Paper and code: neither was at hand, only accounts. By these the distance of features is weighted by that on
    the grid, so that only neighbours there count. That the weight grows with the rank by distance, from `locality` to
    1, the defaults of `neighbors`, `reach` and `locality`, and the squared distance inside the density, which is that
    of `knn`, are this library's reading. A patch without an anchor in reach goes into the nearest on the grid. Where
    later layers look at windows (Qwen2.5-VL), only patches of one are neighbours, and its best is an anchor before the
    rest of the picture is compared. An anchor is rotated as the first patch of its group. Pictures must be square
    unless the encoder packs them as Qwen2-VL's.

    Args:
        keep: fraction of the patches that is left as anchors.
        encoder_layer: patches merge before this layer of the vision encoder, counted from 0, or a fraction of its
            depth; the published 2 of 24 by default.
        neighbors: k of the density, the patch itself included.
        reach: how many patches around one count as its neighbours.
        locality: what the distance to the nearest of them is multiplied with, the farthest having 1.
    """

    name: ClassVar[str] = "ailurus"
    paper: ClassVar[str] = "2311.01197 (NeurIPS 2023), caddyless/ailurus"
    budget_parameter: ClassVar[str | None] = None

    keep: float = 0.5
    encoder_layer: int | float = 1 / 12
    neighbors: int = 5
    reach: int = 48
    locality: float = 0.5

    def schedule(self) -> Schedule:
        """The encoder, and a stage that keeps everything."""
        encoder = DensityPeakMerging(self.encoder_layer, self.keep, self.neighbors, self.reach, self.locality)
        return Schedule(Stage(0, KeepAll()), encoder=encoder)
