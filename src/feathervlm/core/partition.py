"""Cutting an image into windows, grids or chunks, and ranks inside a part."""

from typing import Literal

import torch
from torch import Tensor

from feathervlm.core.image_rows import ImageRows
from feathervlm.core.tensor_ops import ordered

Cut = Literal["window", "grid", "chunk"]


def zones(images: ImageRows, cut: Cut, by: int) -> Tensor:
    """The zone of every token, numbered within its image in the order of its first cell.

    Args:
        images: the images.
        cut: "window": squares of `by` x `by` cells, smaller at the lower and right border; "grid": `by` x `by` parts
            of every frame; "chunk": `by` runs of the sequence, the first of which take the odd tokens.
        by: see `cut`.

    Returns:
        long (images, n) in [0, n); anything on padding.
    """
    place = images.tokens.geometry
    if cut == "chunk":
        index, count = torch.arange(images.longest, device=images.exists.device), images.exists.sum(1, keepdim=True)
        each, odd = count // by, count % by
        early = index // (each + 1)
        return torch.where(early < odd, early, odd + (index - odd * (each + 1)) // each.clamp(min=1)).clamp(min=0)
    plane, frame, row, col = (
        images.take(part).masked_fill(~images.exists, 0) for part in (place.plane, place.frame, place.row, place.col)
    )
    if cut == "window":
        row, col = row // by, col // by
    else:
        sides = (torch.zeros_like(side).scatter_reduce(1, plane, side, "amax").gather(1, plane) for side in (row, col))
        row, col = (side * by // (whole + 1) for side, whole in zip((row, col), sides, strict=True))
    parts = [(~images.exists).long(), plane, frame, row, col]
    order = ordered(parts)
    aligned = torch.stack(parts).gather(2, order.expand(len(parts), -1, -1))
    starts = torch.zeros_like(order)
    starts[:, 1:] = (aligned[..., 1:] != aligned[..., :-1]).any(0)
    return torch.zeros_like(order).scatter(1, order, starts.cumsum(1))


def per_zone(values: Tensor, zone: Tensor) -> Tensor:
    """Sums of values (images, n) over zones: (images, n), the number of a zone being its place."""
    return torch.zeros_like(values).scatter_add(1, zone, values)


def ranks(pool: Tensor, zone: Tensor, scores: Tensor) -> Tensor:
    """How many tokens of its zone come before each of the pool by score; of equals the lower index comes first.

    Args:
        pool: bool (images, n).
        zone: long (images, n).
        scores: (images, n).

    Returns:
        long (images, n); anything outside the pool.
    """
    sizes = per_zone(pool.long(), zone)
    order = ordered([(~pool).long(), zone, -scores])
    starts = (sizes.cumsum(1) - sizes).gather(1, zone.gather(1, order))
    return torch.zeros_like(order).scatter(1, order, torch.arange(zone.shape[1], device=zone.device) - starts)
