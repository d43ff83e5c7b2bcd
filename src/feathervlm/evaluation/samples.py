"""One graded answer with its cost and the cells that were kept, and masks of cells as text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box

Mask = NDArray[np.bool_]
DIGITS = {"score": 6, "iou": 4, "box": 5, "tokens": 3, "flops": 5, "covers": 5, "target": 5}
"""Decimals of the numbers of a sample in JSON."""


@dataclass(frozen=True)
class Sample:
    """One graded answer.

    Attributes:
        question: Index of the question in its set.
        id: Name of the question.
        split: Part of the data set that the question belongs to.
        answer: The answer as it was written, or the choice.
        score: Number from 0 to 1.
        valid: Whether the answer names a box; None if the question asks for none.
        iou: IoU with the true box; None if the question asks for none.
        box: Box that the answer names, in pixels; None if there is no such box.
        top: Whether the center of the true box lies in the top half of the picture; None without a true box.
        tokens: Visual tokens per layer, averaged over layers; None if nothing was pruned.
        flops: FLOPs of the prefill over those of the unpruned one; None if nothing was pruned.
        shape: (frames, rows, cols) of the finest grid of the picture; None if nothing was pruned.
        kept: Cells of that grid that each stage kept, as `pack` writes them.
        covers: Part of the picture that the grid covers, in pixels; None if nothing was pruned.
        target: True box in fractions of what the grid covers; None without a true box, or if nothing was pruned.
    """

    question: int
    id: str
    split: str
    answer: str
    score: float
    valid: bool | None = None
    iou: float | None = None
    box: Box | None = None
    top: bool | None = None
    tokens: float | None = None
    flops: float | None = None
    shape: tuple[int, int, int] | None = None
    kept: tuple[str, ...] = ()
    covers: Box | None = None
    target: Box | None = None

    @property
    def right(self) -> bool:
        """Whether the answer has the full score."""
        return self.score >= 1

    def masks(self) -> list[Mask]:
        """Return the kept cells after each stage, bool of `shape`."""
        return [] if self.shape is None else [unpack(text, self.shape) for text in self.kept]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, rounded, ready for JSON."""
        return {key: _rounded(value, DIGITS[key]) if key in DIGITS else value for key, value in asdict(self).items()}


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, Sequence):
        return [round(float(one), digits) for one in value]
    return None if value is None else round(float(value), digits)


def pack(mask: ArrayLike) -> str:
    """Return a mask as hexadecimal digits, eight cells to a byte in raster order; `unpack` needs its shape.

    >>> pack([[True, False, False, True]])
    '90'
    """
    return np.packbits(np.asarray(mask, bool).ravel()).tobytes().hex()


def unpack(text: str, shape: Sequence[int]) -> Mask:
    """Return the mask that `pack` wrote, bool of `shape`.

    Raises:
        PruningError: The text is not hexadecimal or has another number of cells.
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
    """Return a mask as bool of shape (frames, rows, cols).

    Raises:
        PruningError: The mask has other dimensions, or one of them is empty.
    """
    grid = np.asarray(mask, bool)
    if grid.ndim == 2:
        grid = grid[None]
    if grid.ndim != 3 or not grid.size:
        raise PruningError(f"A mask of shape {grid.shape} shows no picture; give (frames, rows, cols).")
    return grid
