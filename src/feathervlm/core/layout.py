"""Where the visual tokens of a batch are, and which cell of which picture each one shows.

A `VisualLayout` is all that the algebra knows about an input. Families make one from a model's inputs; users make
one by hand for models that no family knows. It does not know what an image looked like, only its grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError

GridShape = tuple[int, int, int]
"""(frames, rows, cols) of one image or video; a still image has one frame."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Coordinates of every visual token of a batch, padded to the sample with the most, all (batch, visual).

    Slot `v` of a sample is its `v`-th visual token in sequence order; `exists` is False on padding.
    """

    exists: Tensor
    image: Tensor
    frame: Tensor
    row: Tensor
    col: Tensor
    images: int
    """The largest number of images in a sample, at least 1."""


@dataclass(frozen=True, eq=False)
class VisualLayout:
    """The visual tokens of a batch: a mask over the sequence and the grid of every image.

    Args:
        mask: bool (batch, sequence), True on visual tokens. Separators and line-break tokens are text.
        grids: for every sample a list with one (frames, rows, cols) per image, in sequence order; (rows, cols)
            is read as one frame. Tokens of an image lie in raster order, frame by frame.
        query: optional long (batch,), the position whose attention asks for tokens. Default: the last token of
            the prompt.

    Raises:
        PruningError: if a grid does not match the number of visual tokens of its sample.

    >>> mask = torch.tensor([[False, True, True, True, True, False]])
    >>> VisualLayout(mask, [[(1, 2, 2)]]).counts
    (4,)
    """

    mask: Tensor
    grids: Sequence[Sequence[Sequence[int]]]
    query: Tensor | None = None
    shapes: tuple[tuple[GridShape, ...], ...] = field(init=False, repr=False)
    trusted: bool = field(default=False, repr=False, kw_only=True)
    """Set by families that have counted already, which spares the check its device sync."""

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Tensor) or self.mask.dim() != 2:
            raise PruningError("VisualLayout.mask must be a bool tensor of shape (batch, sequence).")
        object.__setattr__(self, "mask", self.mask.bool())
        if len(self.grids) != self.mask.shape[0]:
            raise PruningError(
                f"VisualLayout has grids for {len(self.grids)} samples but its mask has {self.mask.shape[0]} rows; "
                "give one list of grids per sample (an empty list for a sample without images)."
            )
        object.__setattr__(self, "shapes", tuple(_shapes(sample) for sample in self.grids))
        if self.query is not None and getattr(self.query, "shape", None) != self.mask.shape[:1]:
            raise PruningError(f"VisualLayout.query={self.query!r} must be a tensor of shape ({self.mask.shape[0]},).")
        if not self.trusted:
            self._check_counts()

    def _check_counts(self) -> None:
        for sample, (found, expected) in enumerate(zip(self.mask.sum(1).tolist(), self.counts, strict=True)):
            if found != expected:
                raise PruningError(
                    f"Sample {sample} has {found} visual tokens but its grids {list(self.shapes[sample])} make "
                    f"{expected}; mask and grids must describe the same images."
                )

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens of every sample."""
        return tuple(sum(_size(shape) for shape in sample) for sample in self.shapes)

    @property
    def width(self) -> int:
        """The largest number of visual tokens in a sample: the length of the `visual` dimension."""
        return max(self.counts, default=0)

    def positions(self) -> Tensor:
        """Sequence position of every visual token, long (batch, visual); meaningless where none exists."""
        # A stable sort instead of `nonzero`: the width is known on the host, so the device need not be asked.
        order = torch.sort((~self.mask).to(torch.uint8), dim=1, stable=True).indices
        return order[:, : self.width]

    def geometry(self) -> Geometry:
        """Coordinates of every visual token, on the mask's device."""
        return _geometry(self.shapes, str(self.mask.device))

    def fit(self, batch: int, sequence: int) -> "VisualLayout":
        """The layout of the same prompts repeated `batch // len` times (beams) and followed by more text."""
        rows, known = self.mask.shape
        if not rows or batch % rows or sequence < known:
            raise PruningError(
                f"The layout describes {rows} x {known} tokens but the model was given {batch} x {sequence}; "
                "make a layout for this input."
            )
        repeats = batch // rows
        mask = torch.nn.functional.pad(self.mask.repeat_interleave(repeats, 0), (0, sequence - known))
        query = None if self.query is None else self.query.repeat_interleave(repeats, 0)
        grids = [sample for sample in self.shapes for _ in range(repeats)]
        return VisualLayout(mask, grids, query, trusted=True)

    def to(self, device: torch.device) -> "VisualLayout":
        """The same layout on another device."""
        query = None if self.query is None else self.query.to(device)
        return VisualLayout(self.mask.to(device), self.shapes, query, trusted=True)


def grid_shape(grid: Sequence[int]) -> GridShape:
    """(frames, rows, cols) from that or from (rows, cols).

    Raises:
        PruningError: if it is neither.
    """
    sides = tuple(grid) if isinstance(grid, Sequence) else ()
    if len(sides) == 2:
        sides = (1, *sides)
    if len(sides) != 3 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise PruningError(f"{grid!r} is not a grid; give (frames, rows, cols), whole numbers of at least 1.")
    return sides[0], sides[1], sides[2]


def _shapes(sample: Sequence[Sequence[int]]) -> tuple[GridShape, ...]:
    if not isinstance(sample, Sequence):
        raise PruningError(f"{sample!r} is not a list of grids; every sample has a list with one grid per image.")
    return tuple(grid_shape(grid) for grid in sample)


def _size(shape: GridShape) -> int:
    return shape[0] * shape[1] * shape[2]


@lru_cache(maxsize=64)
def _geometry(shapes: tuple[tuple[GridShape, ...], ...], device: str) -> Geometry:
    with torch.inference_mode(False):  # cached beyond this call, and training may be the next to use it
        return _make_geometry(shapes, device)


def _make_geometry(shapes: tuple[tuple[GridShape, ...], ...], device: str) -> Geometry:
    width = max((sum(map(_size, sample)) for sample in shapes), default=0)
    coordinates = torch.zeros(4, len(shapes), width, dtype=torch.long)
    exists = torch.zeros(len(shapes), width, dtype=torch.bool)
    for sample, grids in enumerate(shapes):
        start = 0
        for image, grid in enumerate(grids):
            end = start + _size(grid)
            cells = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(-1, 3).T  # (3, cells)
            coordinates[0, sample, start:end] = image
            coordinates[1:, sample, start:end] = cells
            start = end
        exists[sample, :start] = True
    image, frame, row, col = coordinates.to(device)
    images = max((len(grids) for grids in shapes), default=0)
    return Geometry(exists.to(device), image, frame, row, col, max(images, 1))
