"""The answers of a study on disk: one run per method over all questions. Knows nothing of what they mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.evaluation.store import Journal

Mask = NDArray[np.bool_]


def pack(mask: ArrayLike) -> str:
    """The mask as hexadecimal digits, eight cells to a byte in raster order; `unpack` needs its shape.

    >>> pack([[True, False, False, True]])
    '90'
    """
    return np.packbits(np.asarray(mask, bool).ravel()).tobytes().hex()


def unpack(text: str, shape: Sequence[int]) -> Mask:
    """The mask that `pack` wrote, bool of `shape`.

    Raises:
        PruningError: if the text is not hexadecimal or has another number of cells.
    """
    size = prod(shape)
    try:
        packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    except ValueError:
        raise PruningError(f"{text[:20]!r} is no packed mask; give the hexadecimal digits that pack() wrote.") from None
    if len(packed) != (size + 7) // 8:
        raise PruningError(f"A mask of {tuple(shape)} takes {(size + 7) // 8} bytes, not {len(packed)}.")
    return np.unpackbits(packed, count=size).astype(bool).reshape(tuple(shape))


def as_grid(mask: ArrayLike) -> Mask:
    """The mask as bool (frames, rows, cols).

    Raises:
        PruningError: if it has other dimensions, or none of some.
    """
    grid = np.asarray(mask, bool)
    if grid.ndim == 2:
        grid = grid[None]
    if grid.ndim != 3 or not grid.size:
        raise PruningError(f"A mask of shape {grid.shape} shows no picture; give (frames, rows, cols).")
    return grid


@dataclass(frozen=True)
class Record:
    """One answer.

    Attributes:
        question: its number in the data set.
        answer: as written.
        right: whether it counts.
        iou: with the true box; None unless the question asks for one.
        box: that the answer names, in pixels; None if it names no valid one.
        top: whether the target's centre lies in the top half of the picture; None without a target.
        tokens: visual tokens per layer, averaged over layers; None if nothing was pruned.
        flops: FLOPs of the batch's prefill over those of the unpruned one; None if nothing was pruned.
        shape: (frames, rows, cols) of the picture's finest grid; None if nothing was pruned.
        kept: for each stage the cells of that grid that stayed, as `kept.pack` writes them.
        covers: what that grid covers of the picture, in pixels.
        target: the true box in shares of what that grid covers; None without one, or if nothing was pruned.
    """

    question: int
    answer: str
    right: bool
    iou: float | None = None
    box: Box | None = None
    top: bool | None = None
    tokens: float | None = None
    flops: float | None = None
    shape: tuple[int, int, int] | None = None
    kept: tuple[str, ...] = ()
    covers: Box | None = None
    target: Box | None = None


class Ledger(Journal[Record]):
    """The answers of a study, in `folder`; a run's name is its method's spec, or `UNPRUNED`. See `Journal`."""

    def __init__(self, folder: Path, key: Mapping[str, Any], begun: Mapping[str, Any] | None = None) -> None:
        super().__init__(folder, key, Record, begun)
