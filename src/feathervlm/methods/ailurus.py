"""AiluRus: merge patches into density peaks at an early layer of the vision encoder."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import DensityPeakMerging, KeepAll, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class AiluRus(Method):
    """Merge patches into density peaks at an early layer of the vision encoder, and expand the groups after it.

    Patches merge into a peak that is near and similar, so plain regions become coarse and contours stay fine. Only the
    encoder gets faster: the language model gets every token, and another method may prune there.

    Paper and code: neither was available, only descriptions of them. According to these the distance of features is
    weighted by the distance on the grid, so that only neighbours on the grid count. This library chose the rest: the
    weight grows with the rank by distance, from `locality` to 1; the defaults of `neighbors`, `reach` and `locality`;
    and the squared distance in the density, as in `knn`. A patch without a peak in reach goes into the nearest one on
    the grid. Where later layers attend within windows (Qwen2.5-VL), only patches of one window are neighbours, and the
    best patch of each window is a peak before all others are compared. A merged patch is rotated as the first patch of
    its group. Pictures must be square unless the encoder packs them as in Qwen2-VL.

    Args:
        keep: Fraction of the patches that remain.
        encoder_layer: Patches merge before this layer of the vision encoder, counted from 0, or a fraction of its
            depth; by default the published 2 of 24.
        neighbors: k of the density, the patch itself included.
        reach: Number of patches around a patch that are its neighbours.
        locality: Weight of the distance to the nearest neighbour; the farthest has weight 1.
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
        encoder = DensityPeakMerging(self.encoder_layer, self.keep, self.neighbors, self.reach, self.locality)
        return Schedule(Stage(0, KeepAll()), encoder=encoder)
