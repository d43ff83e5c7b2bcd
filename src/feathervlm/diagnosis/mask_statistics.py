"""Numbers of masks: where in the picture the kept tokens lie, what they cover, how far two masks agree.

A mask is the finest grid of one picture, bool (frames, rows, cols), True where the token is kept; a mask (rows, cols)
has one frame.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.samples import Mask, as_grid

Floats = NDArray[np.float64]

COMMON = (24, 24)
"""(rows, cols) on which grids of different shapes are compared."""


def mean_row(mask: ArrayLike) -> float:
    """Return the mean of (row + 0.5) / rows over the kept cells: 0 is the top, 1 the bottom, 0.5 an even spread.

    This is the statistic of arXiv 2412.13180, where FastV at layer 3 of LLaVA has 0.807. It is NaN if nothing is kept.
    """
    grid = as_grid(mask)
    counts = grid.sum((0, 2))
    return float(counts @ ((np.arange(len(counts)) + 0.5) / len(counts)) / counts.sum()) if counts.any() else np.nan


def bottom_third(mask: ArrayLike) -> float:
    """Return the share of the kept cells in the bottom third of the picture; NaN if nothing is kept.

    An even spread has 1/3. A row that the border of the third cuts counts in part.
    """
    return float(row_profile([as_grid(mask)], bins=3)[2])


def row_profile(masks: Sequence[ArrayLike], bins: int | None = None) -> Floats:
    """Return the share of the kept tokens in every row, mean over the masks.

    Masks that keep nothing do not count; if no mask keeps anything, all shares are NaN.

    Args:
        masks: Masks, each of shape (frames, rows, cols).
        bins: Number of bins of the height; a row between two bins counts in part in both. The default is the number
            of rows if all masks have as many, else 24.

    Returns:
        Shares of shape (bins,) that sum to 1.

    Raises:
        PruningError: There is no mask.
    """
    return _profile([as_grid(mask) for mask in masks], 1, bins or 0)


def column_profile(masks: Sequence[ArrayLike], bins: int | None = None) -> Floats:
    """Return the share of the kept tokens in every column; see `row_profile`."""
    return _profile([as_grid(mask) for mask in masks], 2, bins or 0)


def heat_map(masks: Sequence[ArrayLike], shape: tuple[int, int] | None = None) -> Floats:
    """Return the share of the masks that keep each cell, mean over frames.

    Args:
        masks: Masks, each of shape (frames, rows, cols).
        shape: Common grid (rows, cols), to which every mask is resampled by the nearest cell. The default is the grid
            of the masks if all have the same, else 24 x 24.

    Returns:
        Shares of shape (rows, cols).

    Raises:
        PruningError: There is no mask.
    """
    return mean_map([as_grid(mask).mean(0) for mask in masks], shape)


def mean_map(maps: Sequence[Floats], shape: tuple[int, int] | None = None) -> Floats:
    """Return the mean of maps (rows, cols), on the common grid of `heat_map`.

    Raises:
        PruningError: There is no map.
    """
    if not maps:
        raise PruningError("There is no map to take the mean of; give at least one.")
    shapes = {values.shape for values in maps}
    rows, cols = shape or (next(iter(shapes)) if len(shapes) == 1 else COMMON)
    return np.mean([resample(values, (rows, cols)) for values in maps], axis=0)


def resample(values: NDArray, shape: tuple[int, int]) -> NDArray:
    """Return the map (rows, cols) on another grid, in which every cell takes the value of the nearest one."""
    row, col = (
        np.floor((np.arange(new) + 0.5) / new * old).astype(int)
        for new, old in zip(shape, values.shape, strict=True)
    )  # fmt: skip
    return values[row][:, col]


def chi_square(counts: ArrayLike, expected: ArrayLike) -> tuple[float, float]:
    """Return the statistic and the p-value of Pearson's goodness-of-fit test.

    The test assumes independent draws. Kept tokens are not independent: neighbours go together, and pictures of one
    kind are alike. Read a small p as "uneven", not as its exact value.

    Args:
        counts: Observed counts of shape (bins,).
        expected: Expected counts of shape (bins,), above 0.

    Raises:
        PruningError: The shapes differ, or an expected count is not above 0.

    >>> statistic, p = chi_square([10, 20, 30], [20, 20, 20])
    >>> round(statistic, 3), round(p, 5)
    (10.0, 0.00674)
    """
    observed, even = np.asarray(counts, float).ravel(), np.asarray(expected, float).ravel()
    if observed.shape != even.shape or not (even > 0).all():
        raise PruningError(
            f"chi_square compares {len(observed)} counts with {len(even)} expected ones; give as many, all above 0."
        )
    statistic = float(((observed - even) ** 2 / even).sum())
    if len(observed) < 2:
        return statistic, 1.0
    half = torch.tensor([(len(observed) - 1) / 2, statistic / 2], dtype=torch.float64)
    return statistic, float(torch.special.gammaincc(half[0], half[1]))


def largest_uncovered_square(mask: ArrayLike) -> int:
    """Return the side in cells of the largest square without a kept token in any frame; 0 if everything is kept."""
    grid = as_grid(mask)
    sums = np.pad(grid.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    low, high = 0, min(grid.shape[1:])
    while low < high:  # where a square fits, a smaller one fits, too
        side = (low + high + 1) // 2
        inside = sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side] + sums[:, :-side, :-side]
        low, high = (side, high) if (inside == 0).any() else (low, side - 1)
    return low


def empty_blocks(mask: ArrayLike, block: int = 3) -> float:
    """Return the share of the blocks of `block` x `block` cells, from the top left corner, without a kept token.

    Blocks that the border cuts off do not count, so that a uniform grid of that stride leaves no block empty. On a grid
    of fewer rows or columns a block has as many as the grid.

    Raises:
        PruningError: `block` is below 1.
    """
    if block < 1:
        raise PruningError(f"block={block} is not a number of cells; give 1 or more.")
    grid = as_grid(mask)
    down, across = (min(block, side) for side in grid.shape[1:])
    rows, cols = grid.shape[1] // down, grid.shape[2] // across
    whole = grid[:, : rows * down, : cols * across]
    kept = whole.reshape(-1, rows, down, cols, across).any((2, 4))
    return float(1 - kept.mean())


def border_share(mask: ArrayLike) -> float:
    """Return the share of the kept cells in the outermost ring of the picture; NaN if nothing is kept.

    An even spread has the `even_border_share` of the grid.
    """
    grid = as_grid(mask)
    return float((grid & _ring(grid.shape)).sum() / grid.sum()) if grid.any() else np.nan


def even_border_share(shape: Sequence[int]) -> float:
    """Return the share of all cells in the outermost ring of a grid (frames, rows, cols)."""
    return float(_ring(tuple(shape)).mean())


def overlap(a: ArrayLike, b: ArrayLike) -> float:
    """Return the share of the kept cells of `b` that `a` keeps, too (containment); NaN if `b` keeps nothing.

    It is symmetric for masks of one size. Random tokens have the kept share of `a`. Jaccard's index is not used because
    it falls with the sizes alone where a later stage keeps fewer.

    Raises:
        PruningError: The shapes differ.
    """
    one, other = as_grid(a), as_grid(b)
    if one.shape != other.shape:
        raise PruningError(f"Masks of {one.shape} and {other.shape} do not show the same cells; give equal grids.")
    return float((one & other).sum() / other.sum()) if other.any() else np.nan


def _ring(shape: tuple[int, ...]) -> Mask:
    ring = np.ones(shape, bool)
    ring[:, 1:-1, 1:-1] = False
    return ring


def _profile(grids: Sequence[Mask], axis: int, bins: int) -> Floats:
    if not grids:
        raise PruningError("There is no mask to take a profile of; give at least one.")
    sides = {grid.shape[axis] for grid in grids}
    bins = bins or (next(iter(sides)) if len(sides) == 1 else COMMON[axis - 1])
    profiles = []
    for grid in grids:
        counts = grid.sum((0, 3 - axis))
        if counts.any():
            profiles.append(_parts(len(counts), bins) @ counts / counts.sum())
    return np.mean(profiles, axis=0) if profiles else np.full(bins, np.nan)


def _parts(cells: int, bins: int) -> Floats:
    """Return the share of each cell in each of the bins of equal length, (bins, cells); columns sum to 1."""
    cell, border = np.arange(cells), np.arange(bins + 1) / bins * cells
    low, high = np.maximum(border[:-1, None], cell), np.minimum(border[1:, None], cell + 1)
    return (high - low).clip(min=0)
