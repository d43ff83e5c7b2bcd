"""Pooling: the tokens of a block are averaged into the one that stays."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates
from feathervlm.core.mergers.base import Merger
from feathervlm.core.partition import starts_run
from feathervlm.core.selectors.basic import Grid
from feathervlm.core.tensor_ops import lexsort


@dataclass(frozen=True)
class Pool(Merger):
    """Average every s x s block: each token goes into the first kept token of its block, image, plane and frame.

    With `Grid(stride)` as the selector that is the block's first cell, and the merge is average pooling.

    Args:
        stride: S, or (frame, row, column) strides. An int keeps frames apart.
    """

    stride: int | Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", Grid(self.stride).stride)  # Grid checks it

    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        place, (frame, row, col) = tokens.geometry, Grid(self.stride).strides
        block = [place.image, place.plane, place.frame // frame, place.row // row, place.col // col]
        order = lexsort([*block, (~kept).long()])
        starts = starts_run(block, order)
        index = torch.arange(order.shape[1], device=order.device)
        first = order.gather(1, (starts * index).cummax(1).values)
        return torch.zeros_like(order).scatter(1, order, first)
