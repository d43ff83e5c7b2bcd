"""Merging patches of the vision encoder into density peaks (AiluRus, arXiv 2311.01197)."""

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feathervlm.core.budget import check_fraction, kept
from feathervlm.core.encoder.base import EncoderMerging, encoder_layer
from feathervlm.core.encoder.grouping import is_first
from feathervlm.core.errors import Unprunable
from feathervlm.core.tensor_ops import peak_scores, to_float64
from feathervlm.core.validation import check_bool, check_encoder_layer, check_int


@dataclass(frozen=True)
class DensityPeakMerging(EncoderMerging):
    """Merge patches into the density peaks of a picture, once (AiluRus, arXiv 2311.01197).

    The distance of a patch to another is that of their features, |z_i - z_j| / sqrt(dim), times a weight that grows
    from `locality` to 1 with the rank of the other by distance on the grid, over the `reach` nearest; patches further
    away or in other windows are not neighbours. Peaks have the highest `feathervlm.core.tensor_ops.peak_scores`; the
    highest of every window come before all others. A patch goes into its nearest peak, or if none is in reach into the
    nearest on the grid. Where an encoder does not give the positions of its patches, pictures must be square.

    Args:
        layer: Patches merge before this layer, counted from the first (0) or from the last (-1), or a fraction of the
            depth.
        keep: Fraction of the patches that remain.
        neighbors: k of the density, the patch itself included.
        reach: Number of patches around a patch that are its neighbours.
        locality: Weight of the nearest of these, in (0, 1]; 1 weights all neighbours equally.
        proportional: See `EncoderMerging`.
    """

    compares: ClassVar[Literal["states", "keys"]] = "states"

    layer: int | float = 1 / 12
    keep: float = 0.5
    neighbors: int = 5
    reach: int = 48
    locality: float = 0.5
    proportional: bool = False

    def __post_init__(self) -> None:
        check_encoder_layer(self.layer)
        check_fraction(self.keep)
        check_int(self.neighbors, "neighbors")
        check_int(self.reach, "reach")
        check_fraction(self.locality, "locality")
        check_bool(self.proportional, "proportional")

    def plan(self, depth: int, patches: int, placed: bool = False) -> dict[int, int]:
        if not placed and isqrt(patches) ** 2 != patches:
            raise Unprunable(
                f"{patches} patches do not make a square, and their positions are unknown; choose another method."
            )
        layer, remaining = encoder_layer(self.layer, depth), kept(self.keep, patches)
        return {layer: remaining} if remaining < patches else {}

    def assign(
        self,
        compared: Tensor,
        count: int,
        protected: int,
        cells: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        images, patches = len(compared), compared.shape[1] - protected
        everything = torch.ones(images, patches, dtype=torch.bool, device=compared.device)
        features = to_float64(compared[:, protected:], everything)
        grid = _apart(_square(patches, features.device) if cells is None else cells)
        # A matrix product is several times as fast, and in float64 exact enough except for zeros.
        apart = torch.cdist(features, features, compute_mode="use_mm_for_euclid_dist")
        apart.diagonal(dim1=1, dim2=2).zero_()
        distance = (apart / features.shape[-1] ** 0.5).float() * self._weights(grid)
        if window is not None:
            across = window[:, None] != window
            distance, grid = distance.masked_fill(across, float("inf")), grid.masked_fill(across, grid.max() + 1)
        best = torch.sort(peak_scores(distance, self.neighbors), dim=1, descending=True, stable=True).indices
        if window is not None:
            best, windows = _one_of_each(best, window)
            count = max(count, windows)
        peak = best[:, :count].sort(1).values
        near = distance.gather(2, peak[:, None].expand(-1, patches, -1))
        far = grid.expand_as(distance).gather(2, peak[:, None].expand(-1, patches, -1))
        target = torch.where(near.isfinite().any(-1), near.argmin(-1), far.argmin(-1))
        target = target.scatter(1, peak, torch.arange(count, device=target.device).expand_as(peak))
        front = torch.arange(protected, device=target.device).expand(images, -1)
        return torch.cat([front, target + protected], 1)

    def _weights(self, grid: Tensor) -> Tensor:
        """Return the weights of the distances of features, (patches, patches): infinite out of reach."""
        order = torch.sort(grid, dim=1, stable=True).indices
        rank = torch.arange(len(grid), device=grid.device).expand_as(order)
        rank = torch.zeros_like(order).scatter(1, order, rank)
        weight = self.locality + (1 - self.locality) * rank / self.reach
        return weight.masked_fill(rank > self.reach, float("inf"))


def _square(patches: int, device: torch.device) -> Tensor:
    """Return rows and columns of a square picture in raster order: long (patches, 2)."""
    index = torch.arange(patches, device=device)
    return torch.stack([index // isqrt(patches), index % isqrt(patches)], 1)


def _apart(cells: Tensor) -> Tensor:
    """Return squared distances on the grid, long (patches, patches), of cells (patches, 2)."""
    return (cells[:, None] - cells).square().sum(-1)


def _one_of_each(best: Tensor, window: Tensor) -> tuple[Tensor, int]:
    """Return patches by score, (1, patches), with the best of every window first, and the number of windows."""
    inside = window[best[0]]
    first = is_first(inside[None] - inside.min(), len(inside))[0]
    return best[:, torch.sort(first.long(), descending=True, stable=True).indices], int(first.sum())
