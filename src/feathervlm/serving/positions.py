"""Positions of the tokens of a pruned prompt, for engines that ask for them before the model runs.

An engine asks for the positions of a prompt when it only knows how many placeholders each picture has. Which cells of
the picture these are is known later, so every token of a picture first gets the position of the picture's first token.
The embeddings carry the rest, the shift, as digits that every floating-point type holds exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BASE = 128
"""Base of the digits; bfloat16 holds whole numbers up to 256 exactly."""
DIGITS = 2
"""Number of digits of a shift, which can be up to BASE**DIGITS - 1."""


class PlacedImage(NamedTuple):
    """The placeholders of one picture.

    Attributes:
        offset: Index of the first placeholder in the pruned prompt.
        kept: Number of placeholders in the pruned prompt.
        full: Number of placeholders in the prompt that positions are counted in: the unpruned one, or with renumbered
            positions the pruned one.
    """

    offset: int
    kept: int
    full: int


class FullPrompt(NamedTuple):
    """A prompt with all placeholders, and where the tokens of the pruned prompt lie in it.

    Attributes:
        tokens: Token ids of the prompt with all placeholders.
        columns: For every token of the pruned prompt the index in `tokens`; all tokens of a picture have its first one.
    """

    tokens: list[int]
    columns: list[int]


def full_prompt(tokens: Sequence[int], images: Sequence[PlacedImage]) -> FullPrompt:
    """Return the prompt with all placeholders.

    Args:
        tokens: Token ids of the pruned prompt.
        images: Its pictures, in order.

    >>> full_prompt([1, 9, 9, 2], [PlacedImage(offset=1, kept=2, full=4)])
    FullPrompt(tokens=[1, 9, 9, 9, 9, 2], columns=[0, 1, 1, 5])
    """
    full: list[int] = []
    columns: list[int] = []
    done = 0
    for image in images:
        columns += range(len(full), len(full) + image.offset - done)
        full += tokens[done : image.offset]
        columns += [len(full)] * image.kept
        full += [tokens[image.offset]] * image.full
        done = image.offset + image.kept
    columns += range(len(full), len(full) + len(tokens) - done)
    full += tokens[done:]
    return FullPrompt(full, columns)


def line_cells(count: int) -> Tensor:
    """Return the shifts of a picture's tokens where positions are numbers on a line: long (1, count)."""
    return torch.arange(count)[None]


def grid_cells(grid: Sequence[int]) -> Tensor:
    """Return the shifts of a still picture's tokens where positions are (time, row, column): long (3, tokens).

    Args:
        grid: (1, rows, cols).
    """
    frames, rows, cols = grid
    axes = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def grid_positions(before: int, grid: Sequence[int], after: int) -> Tensor:
    """Return the (time, row, column) positions of a prompt with one picture: long (3, before + tokens + after).

    Args:
        before: Number of text tokens before the picture.
        grid: (1, rows, cols) of the picture.
        after: Number of text tokens after it.
    """
    start = before + max(grid)
    parts = torch.arange(before), before + grid_cells(grid), torch.arange(start, start + after)
    return torch.cat([part.expand(3, -1) for part in parts], 1)


def with_shifts(embeddings: Tensor, cells: Tensor) -> Tensor:
    """Append the shifts of tokens to their embeddings.

    Args:
        embeddings: Embeddings of shape (tokens, dim).
        cells: Shifts, long (axes, tokens).

    Returns:
        Tensor of shape (tokens, dim + DIGITS * axes), in the type of the embeddings.
    """
    digits = torch.cat([cells // BASE, cells % BASE]).T
    return torch.cat([embeddings, digits.to(embeddings)], 1)


def split_shifts(embeddings: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return embeddings (tokens, dim) and shifts, long (axes, tokens), from what `with_shifts` returned.

    Embeddings without shifts give a tensor of no axes.
    """
    digits = embeddings[:, dim:].round().long().T
    axes = len(digits) // DIGITS
    return embeddings[:, :dim], digits[:axes] * BASE + digits[axes:]
