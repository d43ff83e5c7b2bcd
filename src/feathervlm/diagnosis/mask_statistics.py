"""What a set of kept tokens looks like: where in the picture it lies, what it covers, how two of them agree.

A mask is the finest grid of one question's picture, bool (frames, rows, cols), True where the token was kept;
(rows, cols) is read as one frame. NumPy alone: it knows no model, no method and no report.
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
    """Mean of (row + 0.5) / rows over the kept cells: 0 is the top, 1 the bottom, 0.5 an even spread.

    The paper's statistic: FastV at layer 3 of its LLaVA has 0.807 (arXiv 2412.13180). NaN if nothing is kept.
    """
    grid = as_grid(mask)
    counts = grid.sum((0, 2))
    return float(counts @ ((np.arange(len(counts)) + 0.5) / len(counts)) / counts.sum()) if counts.any() else np.nan


def bottom_third(mask: ArrayLike) -> float:
    """Share of the kept cells in the bottom third of the picture; an even spread has 1/3. NaN if nothing is kept.

    A row that the border of the third cuts counts in part.
    """
    return float(row_profile([as_grid(mask)], bins=3)[2])


def row_profile(masks: Sequence[ArrayLike], bins: int | None = None) -> Floats:
    """For every row the share of the kept tokens that lie there, mean over the masks: (bins,), sums to 1.

    Masks that keep nothing do not count; if none keeps anything, all is NaN.

    Args:
        masks: each (frames, rows, cols).
        bins: of the height, a row between two counts in part. Default: the rows if all masks have as many, else 24.

    Raises:
        PruningError: if there is no mask.
    """
    return _profile([as_grid(mask) for mask in masks], 1, bins or 0)


def column_profile(masks: Sequence[ArrayLike], bins: int | None = None) -> Floats:
    """As `row_profile`, for columns."""
    return _profile([as_grid(mask) for mask in masks], 2, bins or 0)


def heat_map(masks: Sequence[ArrayLike], shape: tuple[int, int] | None = None) -> Floats:
    """Share of the masks that keep each cell, mean over frames: (rows, cols).

    Args:
        masks: each (frames, rows, cols).
        shape: (rows, cols) to bring every mask to, by the nearest cell. Default: their own if all are alike, else
            24 x 24.

    Raises:
        PruningError: if there is no mask.
    """
    return mean_map([as_grid(mask).mean(0) for mask in masks], shape)


def mean_map(maps: Sequence[Floats], shape: tuple[int, int] | None = None) -> Floats:
    """The mean of maps (rows, cols), on the same common grid as `heat_map`.

    Raises:
        PruningError: if there is no map.
    """
    if not maps:
        raise PruningError("There is no map to take the mean of; give at least one.")
    shapes = {values.shape for values in maps}
    rows, cols = shape or (next(iter(shapes)) if len(shapes) == 1 else COMMON)
    return np.mean([resample(values, (rows, cols)) for values in maps], axis=0)


def resample(values: NDArray, shape: tuple[int, int]) -> NDArray:
    """The map (rows, cols) on another grid: every cell takes the value of the nearest one."""
    row, col = (
        np.floor((np.arange(new) + 0.5) / new * old).astype(int)
        for new, old in zip(shape, values.shape, strict=True)
    )  # fmt: skip
    return values[row][:, col]


def chi_square(counts: ArrayLike, expected: ArrayLike) -> tuple[float, float]:
    """Pearson's goodness of fit: the statistic, and how often chance alone would give as much or more.

    It takes the counts for independent draws. Kept tokens are not: neighbours go together, and pictures of one kind
    are alike. Read a small p as "uneven", not as its exact value.

    Args:
        counts: (bins,), what was found.
        expected: (bins,), what should be, above 0.

    Raises:
        PruningError: if the shapes differ or something expected is not above 0.

    >>> statistic, p = chi_square([10, 20, 30], [20, 20, 20])
    >>> round(statistic, 3), round(p, 5)
    (10.0, 0.00674)
    """
    found, wanted = np.asarray(counts, float).ravel(), np.asarray(expected, float).ravel()
    if found.shape != wanted.shape or not (wanted > 0).all():
        raise PruningError(
            f"chi_square compares {len(found)} counts with {len(wanted)} expected ones; give as many, all above 0."
        )
    statistic = float(((found - wanted) ** 2 / wanted).sum())
    if len(found) < 2:
        return statistic, 1.0
    half = torch.tensor([(len(found) - 1) / 2, statistic / 2], dtype=torch.float64)
    return statistic, float(torch.special.gammaincc(half[0], half[1]))


def largest_uncovered_square(mask: ArrayLike) -> int:
    """Side, in cells, of the largest square without a kept token, in whichever frame; 0 if everything is kept."""
    grid = as_grid(mask)
    sums = np.pad(grid.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    low, high = 0, min(grid.shape[1:])
    while low < high:  # where a square fits, a smaller one does
        side = (low + high + 1) // 2
        inside = sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side] + sums[:, :-side, :-side]
        low, high = (side, high) if (inside == 0).any() else (low, side - 1)
    return low


def empty_blocks(mask: ArrayLike, block: int = 3) -> float:
    """Share of the blocks of `block` x `block` cells, from the top left corner, without a kept token.

    Blocks that the border cuts off do not count, so a uniform grid of that stride leaves none empty. On a grid of fewer
    rows or columns a block has that many.

    Raises:
        PruningError: if `block` is below 1.
    """
    if block < 1:
        raise PruningError(f"block={block} is no number of cells; give 1 or more.")
    grid = as_grid(mask)
    down, across = (min(block, side) for side in grid.shape[1:])
    rows, cols = grid.shape[1] // down, grid.shape[2] // across
    whole = grid[:, : rows * down, : cols * across]
    kept = whole.reshape(-1, rows, down, cols, across).any((2, 4))
    return float(1 - kept.mean())


def border_share(mask: ArrayLike) -> float:
    """Share of the kept cells that lie in the outermost ring of the picture; NaN if nothing is kept.

    An even spread has `even_border_share` of its shape.
    """
    grid = as_grid(mask)
    return float((grid & _ring(grid.shape)).sum() / grid.sum()) if grid.any() else np.nan


def even_border_share(shape: Sequence[int]) -> float:
    """Share of all cells that lie in the outermost ring of a grid of (frames, rows, cols)."""
    return float(_ring(tuple(shape)).mean())


def overlap(a: ArrayLike, b: ArrayLike) -> float:
    """Containment: the share of the kept cells of `b` that `a` keeps, too; NaN if `b` keeps nothing.

    For sets of one size it is symmetric. Tokens drawn at random have the kept share of `a`. Not Jaccard's index,
    which would fall with the sizes alone where a later stage keeps fewer.

    Raises:
        PruningError: if the shapes differ.
    """
    one, other = as_grid(a), as_grid(b)
    if one.shape != other.shape:
        raise PruningError(f"Masks of {one.shape} and {other.shape} do not show the same cells; compare those of one.")
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
    """How much of each cell lies in each bin of the same length: (bins, cells), columns sum to 1."""
    cell, border = np.arange(cells), np.arange(bins + 1) / bins * cells
    low, high = np.maximum(border[:-1, None], cell), np.minimum(border[1:, None], cell + 1)
    return (high - low).clip(min=0)
