"""From the states of a vision encoder's patches to one feature per visual token, grouped as the model's merger does.

The feature of a merged token is the mean of its patches.
"""

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import GridShape


def merge_square(states: Tensor, side: int) -> Tensor:
    """Merge the patches of square tiles into `side` x `side` tokens per tile.

    Args:
        states: States of shape (tiles, patches, dim).
        side: Rows, and columns, of the tokens of a tile.

    Returns:
        Features of shape (tiles * side**2, dim).

    Raises:
        Unprunable: If the patches do not form such squares.
    """
    patches_per_row = isqrt(states.shape[1])
    if patches_per_row * patches_per_row != states.shape[1] or patches_per_row % side:
        raise Unprunable(
            f"{states.shape[1]} patches do not merge into {side} x {side} tokens; use the projected features "
            "(features=projected)."
        )
    return merge_blocks(states.flatten(0, 1), states.shape[0], side, side, patches_per_row // side)


def merge_blocks(states: Tensor, tiles: int, rows: int, cols: int, block: int) -> Tensor:
    """Merge blocks of `block` x `block` patches that are in raster order.

    Args:
        states: States of shape (tiles * rows * cols * block**2, dim).
        tiles: Number of tiles.
        rows: Rows of tokens of a tile.
        cols: Columns of tokens of a tile.
        block: Rows, and columns, of the patches of a token.

    Returns:
        Features of shape (tiles * rows * cols, dim).
    """
    return states.view(tiles, rows, block, cols, block, -1).mean((2, 4)).flatten(0, 2)


def merge_pictures(states: Tensor, shapes: Sequence[GridShape], block: int) -> Tensor:
    """Merge the patches of pictures that follow each other, each in raster order.

    Args:
        states: States of all patches, of shape (patches, dim).
        shapes: (1, rows, cols) of each picture, in tokens.
        block: Rows, and columns, of the patches of a token.

    Returns:
        Features of shape (tokens, dim).
    """
    pictures = states.split([rows * cols * block**2 for _, rows, cols in shapes])
    merged = [merge_blocks(picture, *shape, block) for picture, shape in zip(pictures, shapes, strict=True)]
    return torch.cat(merged)


def merge_groups(states: Tensor, tokens: int) -> Tensor:
    """Merge patches that are grouped by token already, the same number for each token.

    Args:
        states: States of shape (patches, dim).
        tokens: Number of tokens.

    Returns:
        Features of shape (tokens, dim).

    Raises:
        Unprunable: If the number of patches is not a multiple of the number of tokens.
    """
    if len(states) % tokens:
        raise Unprunable(
            f"{len(states)} patches do not merge into {tokens} tokens; use the projected features (features=projected)."
        )
    return states.view(tokens, len(states) // tokens, -1).mean(1)
