"""From the states of a vision tower's patches to one feature per visual token, as the model's own merger groups them.

A merged token's feature is the mean of its patches. Plain tensors: knows no model.
"""

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import GridShape


def merge_square(states: Tensor, side: int) -> Tensor:
    """Square blocks of patches in a square of `side` x `side` tokens: (tiles * side**2, dim) of (tiles, patches, dim).

    Raises:
        Unprunable: if the patches make no such square.
    """
    across = isqrt(states.shape[1])
    if across * across != states.shape[1] or across % side:
        raise Unprunable(
            f"{states.shape[1]} patches do not merge into {side} x {side} tokens; use the projected features "
            "(features=projected)."
        )
    return merge_blocks(states.flatten(0, 1), states.shape[0], side, side, across // side)


def merge_blocks(states: Tensor, tiles: int, rows: int, cols: int, block: int) -> Tensor:
    """Blocks of `block` x `block` patches in raster order: (tiles * rows * cols, dim)."""
    return states.view(tiles, rows, block, cols, block, -1).mean((2, 4)).flatten(0, 2)


def merge_pictures(states: Tensor, shapes: Sequence[GridShape], block: int) -> Tensor:
    """Pictures of so many (1, rows, cols) tokens one after the other, each in raster order: (tokens, dim)."""
    pictures = states.split([rows * cols * block**2 for _, rows, cols in shapes])
    merged = [merge_blocks(one, *shape, block) for one, shape in zip(pictures, shapes, strict=True)]
    return torch.cat(merged)


def merge_groups(states: Tensor, tokens: int) -> Tensor:
    """Patches that lie together already, as many for each token: (tokens, dim) of (patches, dim).

    Raises:
        Unprunable: if they cannot be shared out evenly.
    """
    if len(states) % tokens:
        raise Unprunable(
            f"{len(states)} patches do not merge into {tokens} tokens; use the projected features (features=projected)."
        )
    return states.view(tokens, len(states) // tokens, -1).mean(1)
