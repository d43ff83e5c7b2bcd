"""A selector that adds the neighbouring cells of the tokens that another selector keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.budget import ImageTokens
from feathervlm.core.candidates import Candidates
from feathervlm.core.errors import PruningError
from feathervlm.core.selectors.base import Selector, check_operands


@dataclass(frozen=True)
class Dilate(Selector):
    """Keep what another selector keeps, and the cells around it in the same frame of the same image.

    Args:
        inner: The other selector.
        offsets: (row, column) steps to the cells around; by default the four that share a side.

    Raises:
        PruningError: If an offset is not two integers.
    """

    inner: Selector
    offsets: Sequence[Sequence[int]] = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def __post_init__(self) -> None:
        check_operands(self.inner)
        if not isinstance(self.offsets, Sequence) or not all(map(_is_step, self.offsets)):
            raise PruningError(f"offsets={self.offsets!r} must be (row, column) steps, such as ((0, 1), (1, 0)).")
        object.__setattr__(self, "offsets", tuple(map(tuple, self.offsets)))

    def select(self, tokens: Candidates) -> Tensor:
        kept, place = self.inner.select(tokens), tokens.geometry
        if not kept.shape[1]:
            return kept
        frames, rows, cols = (side.amax() + 1 for side in (place.frame, place.row, place.col))
        planes = place.plane.amax() + 1
        cell = (((place.image * planes + place.plane) * frames + place.frame) * rows + place.row) * cols + place.col
        cell = torch.where(place.exists, cell, torch.iinfo(cell.dtype).max)
        known, order = cell.sort(1)
        result = kept
        for down, right in self.offsets:
            row, col = place.row - down, place.col - right  # the cell whose token would add this one
            inside = place.exists & (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
            neighbour = cell - down * cols - right
            slot = torch.searchsorted(known, neighbour).clamp(max=known.shape[1] - 1)
            inside = inside & (known.gather(1, slot) == neighbour)
            result = result | (inside & kept.gather(1, order.gather(1, slot)))
        return result & tokens.present

    def expected(self, image: ImageTokens) -> float:
        if not image.current:
            return 0.0
        dropped = max(0.0, 1 - self.inner.expected(image) / image.current)
        return float(image.current * (1 - dropped ** (1 + len(self.offsets))))


def _is_step(offset: object) -> bool:
    if not isinstance(offset, Sequence) or len(offset) != 2:
        return False
    return all(isinstance(step, int) and not isinstance(step, bool) for step in offset)
