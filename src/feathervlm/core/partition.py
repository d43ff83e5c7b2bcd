"""Cutting images into windows, grids or chunks, and ranking tokens inside a part."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from feathervlm.core.image_rows import ImageRows
from feathervlm.core.tensor_ops import lexsort

Partition = Literal["window", "grid", "chunk"]


def part_of_each(images: ImageRows, partition: Partition, size: int, whole_windows: bool = False) -> Tensor:
    """Return the part that every token belongs to, numbered within its image by the order of first cells.

    Args:
        images: The images.
        partition: "window", squares of `size` x `size` cells; "grid", `size` x `size` parts of every frame; "chunk",
            `size` runs of the sequence, of which the first ones are one token longer where it does not divide.
        size: Side of a window, parts along a side, or number of chunks.
        whole_windows: Whether rows and columns beyond the last whole window belong to it; otherwise they make smaller
            windows at the lower and right border.

    Returns:
        Long tensor of shape (images, n) with values in [0, n); any value on padding.
    """
    place = images.tokens.geometry
    if partition == "chunk":
        index, count = torch.arange(images.longest, device=images.exists.device), images.exists.sum(1, keepdim=True)
        each, odd = count // size, count % size
        early = index // (each + 1)
        return torch.where(early < odd, early, odd + (index - odd * (each + 1)) // each.clamp(min=1)).clamp(min=0)
    plane, frame, row, col = (
        images.take(part).masked_fill(~images.exists, 0) for part in (place.plane, place.frame, place.row, place.col)
    )
    sides = [largest_of_plane(side, plane) + 1 for side in (row, col)]
    if partition == "grid":
        row, col = (at * size // side for at, side in zip((row, col), sides, strict=True))
    else:
        row, col = row // size, col // size
        if whole_windows:
            row, col = (at.minimum((side // size - 1).clamp(min=0)) for at, side in zip((row, col), sides, strict=True))
    keys = [(~images.exists).long(), plane, frame, row, col]
    order = lexsort(keys)
    return torch.zeros_like(order).scatter(1, order, starts_run(keys, order).cumsum(1) - 1)


def largest_of_plane(values: Tensor, plane: Tensor) -> Tensor:
    """Return for every token the largest of `values` in its plane; all tensors are long (images, n)."""
    return torch.zeros_like(values).scatter_reduce(1, plane, values, "amax").gather(1, plane)


def starts_run(keys: Sequence[Tensor], order: Tensor) -> Tensor:
    """Mark the elements that begin a run of equal keys.

    Args:
        keys: long tensors of shape (rows, n).
        order: long tensor of shape (rows, n), an order in which elements of equal keys are neighbours.

    Returns:
        Long tensor of shape (rows, n) along `order`, 1 where a run begins and 0 elsewhere.
    """
    aligned = torch.stack([*keys]).gather(2, order.expand(len(keys), -1, -1))
    starts = torch.ones_like(order)
    starts[:, 1:] = (aligned[..., 1:] != aligned[..., :-1]).any(0)
    return starts


def sum_per_part(values: Tensor, part: Tensor) -> Tensor:
    """Sum values (images, n) over parts: (images, n), where column p holds the sum of part p."""
    return torch.zeros_like(values).scatter_add(1, part, values)


def rank_in_part(pool: Tensor, part: Tensor, scores: Tensor) -> Tensor:
    """Count the tokens of its part that come before each token by score; of equal scores the lower index comes first.

    Args:
        pool: bool tensor of shape (images, n), the tokens that are ranked.
        part: long tensor of shape (images, n).
        scores: Tensor of shape (images, n).

    Returns:
        Long tensor of shape (images, n); any value outside the pool.
    """
    sizes = sum_per_part(pool.long(), part)
    order = lexsort([(~pool).long(), part, -scores])
    starts = (sizes.cumsum(1) - sizes).gather(1, part.gather(1, order))
    return torch.zeros_like(order).scatter(1, order, torch.arange(part.shape[1], device=part.device) - starts)
