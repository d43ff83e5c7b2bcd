"""Where the visual tokens of a batch are, and which cell of which picture each one shows.

Families make a `VisualLayout` from a model's inputs; users make one by hand for models that no family supports. A
picture is one grid of tokens or, where a model looks at it several times (an overview and a sharper view in tiles),
several planes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError

GridShape = tuple[int, int, int]
"""(frames, rows, cols) of one image or video; a still image has one frame."""

Box = tuple[float, float, float, float]
"""(left, top, right, bottom)."""


@dataclass(frozen=True)
class Plane:
    """One grid of tokens over a picture, or over each frame of a video.

    Attributes:
        shape: (frames, rows, cols).
        box: Area that the grid covers, as shares of the picture's width and height; outside 0 to 1 where the model was
            shown a margin around the picture.
        tiles: (rows, cols) of tiles. Tokens are ordered tile after tile, in raster order of tiles and inside each; rows
            and columns are counted over the whole plane.
    """

    shape: GridShape
    box: Box = (0.0, 0.0, 1.0, 1.0)
    tiles: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if any(side % tiles for side, tiles in zip(self.shape[1:], self.tiles, strict=True)):
            raise PruningError(
                f"A plane of {self.shape[1:]} rows and columns has no {self.tiles} equal tiles; change tiles."
            )

    @property
    def size(self) -> int:
        """Number of tokens."""
        frames, rows, cols = self.shape
        return frames * rows * cols

    def cells(self) -> Tensor:
        """Return the raster index of the cell that each token shows, in sequence order: long (size,)."""
        frames, rows, cols = self.shape
        down, across = self.tiles
        raster = torch.arange(self.size).view(frames, down, rows // down, across, cols // across)
        return raster.transpose(2, 3).flatten()


Picture = tuple[Plane, ...]
"""The planes of one image or video, in the order of their tokens."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Coordinates of every visual token of a batch, padded to the sample with the most tokens, all (batch, visual).

    Slot `v` of a sample is its `v`-th visual token in sequence order; `exists` is False on padding. `row` and `col` are
    counted within the token's plane; `x` and `y` (float32) are the centre of its cell as shares of the picture.
    """

    exists: Tensor
    image: Tensor
    plane: Tensor
    frame: Tensor
    row: Tensor
    col: Tensor
    x: Tensor
    y: Tensor
    images: int
    """The largest number of images in a sample, at least 1."""
    longest: int
    """Tokens of the largest image."""


@dataclass(frozen=True, eq=False)
class VisualLayout:
    """The visual tokens of a batch: a mask over the sequence and the grid of every image.

    Args:
        mask: bool tensor of shape (batch, sequence), True on visual tokens. Separators and line-break tokens are text.
        grids: For every sample a list with one (frames, rows, cols) per image, in sequence order; (rows, cols) is read
            as one frame. Tokens of an image are in raster order, frame by frame. For an image in several planes a tuple
            of `Plane`s.
        query: long tensor of shape (batch,) or (batch, images), the position whose attention asks for tokens; by
            default the last token of the prompt.

    Raises:
        PruningError: If a grid does not match the number of visual tokens of its sample.

    >>> mask = torch.tensor([[False, True, True, True, True, False]])
    >>> VisualLayout(mask, [[(1, 2, 2)]]).counts
    (4,)
    """

    mask: Tensor
    grids: Sequence[Sequence[Sequence[int] | Picture]]
    query: Tensor | None = None
    pictures: tuple[tuple[Picture, ...], ...] = field(init=False, repr=False)
    trusted: bool = field(default=False, repr=False, kw_only=True)
    """Whether the counts have been checked; families set it, which saves a device sync."""

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Tensor) or self.mask.dim() != 2:
            raise PruningError("VisualLayout.mask must be a bool tensor of shape (batch, sequence).")
        object.__setattr__(self, "mask", self.mask.bool())
        if len(self.grids) != self.mask.shape[0]:
            raise PruningError(
                f"VisualLayout has grids for {len(self.grids)} samples but its mask has {self.mask.shape[0]} rows; "
                "give one list of grids per sample (an empty list for a sample without images)."
            )
        object.__setattr__(self, "pictures", tuple(_pictures(sample) for sample in self.grids))
        rows, images = self.mask.shape[0], max(map(len, self.pictures), default=0)
        if self.query is not None and getattr(self.query, "shape", None) not in ((rows,), (rows, images)):
            raise PruningError(
                f"VisualLayout.query={self.query!r} must be a tensor of shape ({rows},) or ({rows}, {images})."
            )
        if not self.trusted:
            self._check_counts()

    def _check_counts(self) -> None:
        for sample, (count, expected) in enumerate(zip(self.mask.sum(1).tolist(), self.counts, strict=True)):
            if count != expected:
                raise PruningError(
                    f"Sample {sample} has {count} visual tokens but its grids {self.shapes(sample)} make "
                    f"{expected}; mask and grids must describe the same images."
                )

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of visual tokens of every sample."""
        return tuple(sum(map(tokens_of, sample)) for sample in self.pictures)

    @property
    def width(self) -> int:
        """The largest number of visual tokens in a sample: the length of the `visual` dimension."""
        return max(self.counts, default=0)

    def shapes(self, sample: int) -> list[GridShape | tuple[GridShape, ...]]:
        """Return (frames, rows, cols) of every image of a sample, or of each of its planes where it has several."""
        images = [tuple(plane.shape for plane in picture) for picture in self.pictures[sample]]
        return [shapes[0] if len(shapes) == 1 else shapes for shapes in images]

    def positions(self) -> Tensor:
        """Return the sequence position of every visual token, long (batch, visual); any value on padding."""
        # A stable sort instead of `nonzero`: the width is known on the host, so the device need not be asked.
        order = torch.sort((~self.mask).to(torch.uint8), dim=1, stable=True).indices
        return order[:, : self.width]

    def geometry(self) -> Geometry:
        """Return the coordinates of every visual token, on the mask's device."""
        return _geometry(self.pictures, str(self.mask.device))

    def fit(self, batch: int, sequence: int) -> "VisualLayout":
        """Return the layout of the same prompts repeated `batch // len` times (beams) and followed by more text."""
        rows, known = self.mask.shape
        if not rows or batch % rows or sequence < known:
            raise PruningError(
                f"The layout describes {rows} x {known} tokens but the model was given {batch} x {sequence}; "
                "make a layout for this input."
            )
        repeats = batch // rows
        mask = torch.nn.functional.pad(self.mask.repeat_interleave(repeats, 0), (0, sequence - known))
        query = None if self.query is None else self.query.repeat_interleave(repeats, 0)
        grids = [sample for sample in self.pictures for _ in range(repeats)]
        return VisualLayout(mask, grids, query, trusted=True)

    def to(self, device: torch.device) -> "VisualLayout":
        """Return the same layout on another device."""
        query = None if self.query is None else self.query.to(device)
        return VisualLayout(self.mask.to(device), self.pictures, query, trusted=True)


def grid_shape(grid: Sequence[int]) -> GridShape:
    """Return (frames, rows, cols) for that or for (rows, cols).

    Raises:
        PruningError: If it is neither.
    """
    sides = tuple(grid) if isinstance(grid, Sequence) else ()
    if len(sides) == 2:
        sides = (1, *sides)
    if len(sides) != 3 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise PruningError(f"{grid!r} is not a grid; give (frames, rows, cols), whole numbers of at least 1.")
    return sides[0], sides[1], sides[2]


def picture_of(entry: Sequence[int] | Picture) -> Picture:
    """Return the picture of one plane for (frames, rows, cols) or (rows, cols); a picture is returned unchanged.

    Raises:
        PruningError: If it is neither.
    """
    if isinstance(entry, tuple) and entry and all(isinstance(part, Plane) for part in entry):
        return cast(Picture, entry)
    return (Plane(grid_shape(cast(Sequence[int], entry))),)


def tokens_of(picture: Picture) -> int:
    """Count the tokens of all planes."""
    return sum(plane.size for plane in picture)


def _pictures(sample: Sequence[Sequence[int] | Picture]) -> tuple[Picture, ...]:
    if not isinstance(sample, Sequence):
        raise PruningError(f"{sample!r} is not a list of grids; every sample has a list with one grid per image.")
    return tuple(map(picture_of, sample))


@lru_cache(maxsize=64)
def _geometry(pictures: tuple[tuple[Picture, ...], ...], device: str) -> Geometry:
    with torch.inference_mode(False):  # the result is cached, and training may use it next
        return _make_geometry(pictures, device)


def _make_geometry(pictures: tuple[tuple[Picture, ...], ...], device: str) -> Geometry:
    width = max((sum(map(tokens_of, sample)) for sample in pictures), default=0)
    numbers = torch.zeros(5, len(pictures), width, dtype=torch.long)
    centres = torch.zeros(2, len(pictures), width)
    exists = torch.zeros(len(pictures), width, dtype=torch.bool)
    for sample, images in enumerate(pictures):
        start = 0
        for image_index, planes in enumerate(images):
            for number, plane in enumerate(planes):
                cells, (_, rows, cols) = plane.cells(), plane.shape
                place = slice(start, start + plane.size)
                numbers[0, sample, place], numbers[1, sample, place] = image_index, number
                numbers[2:, sample, place] = torch.stack([cells // (rows * cols), cells // cols % rows, cells % cols])
                left, top, right, bottom = plane.box
                centres[0, sample, place] = left + (cells % cols + 0.5) / cols * (right - left)
                centres[1, sample, place] = top + (cells // cols % rows + 0.5) / rows * (bottom - top)
                start += plane.size
        exists[sample, :start] = True
    image, plane_number, frame, row, col = numbers.to(device)
    x, y = centres.to(device)
    most = max((len(images) for images in pictures), default=0)
    longest = max((tokens_of(picture) for images in pictures for picture in images), default=0)
    return Geometry(exists.to(device), image, plane_number, frame, row, col, x, y, max(most, 1), longest)
