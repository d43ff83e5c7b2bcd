"""What surrounds a token: the cells next to those that stay, and how varied the tokens of its zone are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.algebra import ImageTokens, Selector, check_operands
from feathervlm.core.candidates import Candidates
from feathervlm.core.criteria import Criterion, check_whole, choose
from feathervlm.core.diversity import check_criterion
from feathervlm.core.errors import PruningError
from feathervlm.core.images import BLOCK, Images, cosines
from feathervlm.core.signals import Features, FeatureSource, Signal
from feathervlm.core.zones import Cut, zones

NOISE = 2.0**-44
"""A variance of float32 cosines below this is that of their rounding."""


@dataclass(frozen=True)
class Dilate(Selector):
    """Keep what another selector keeps, and the cells around it in the same frame of the same image.

    Args:
        inner: the other selector.
        offsets: (row, column) steps to the cells around; by default the four that share a side.

    Raises:
        PruningError: if an offset is not two whole numbers.
    """

    inner: Selector
    offsets: Sequence[Sequence[int]] = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def __post_init__(self) -> None:
        check_operands(self.inner)
        if not isinstance(self.offsets, Sequence) or not all(map(_is_step, self.offsets)):
            raise PruningError(f"offsets={self.offsets!r} must be (row, column) steps, such as ((0, 1), (1, 0)).")
        object.__setattr__(self, "offsets", tuple(map(tuple, self.offsets)))

    def select(self, tokens: Candidates) -> Tensor:
        """The inner choice and the cells around it that are still there."""
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
            row, col = place.row - down, place.col - right  # where a token is that would bring this one in
            inside = place.exists & (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
            wanted = cell - down * cols - right
            spot = torch.searchsorted(known, wanted).clamp(max=known.shape[1] - 1)
            inside = inside & (known.gather(1, spot) == wanted)
            result = result | (inside & kept.gather(1, order.gather(1, spot)))
        return result & tokens.present

    def expected(self, image: ImageTokens) -> float:
        """Every cell that has a kept one around it or is kept, of independent choices."""
        if not image.current:
            return 0.0
        left_out = max(0.0, 1 - self.inner.expected(image) / image.current)
        return float(image.current * (1 - left_out ** (1 + len(self.offsets))))


def _is_step(offset: object) -> bool:
    if not isinstance(offset, Sequence) or len(offset) != 2:
        return False
    return all(isinstance(step, int) and not isinstance(step, bool) for step in offset)


@dataclass(frozen=True)
class Context(Criterion):
    """A score plus the variety of a token's surroundings: score + alpha * variance (HoloV, arXiv 2510.02912).

    The variance is that of the cosines to the other tokens of its zone, brought to the scale of the score by the
    image's mean |score| / mean variance.

    Args:
        criterion: the score.
        cut: "window", "grid" or "chunk", as in `Zone`.
        by: see `Zone`.
        alpha: weight of the variance.
        features: "vision", encoder patch features before the projector, or "projected".

    Raises:
        PruningError: if a parameter is out of range.
    """

    criterion: Criterion
    cut: Cut = "chunk"
    by: int = 16
    alpha: float = 0.09
    features: FeatureSource = "vision"

    def __post_init__(self) -> None:
        check_criterion(self.criterion, "criterion")
        choose(self.cut, get_args(Cut), "cut")
        check_whole(self.by, "by")
        choose(self.features, get_args(FeatureSource), "features")
        if (
            isinstance(self.alpha, bool)
            or not isinstance(self.alpha, int | float)
            or not 0 <= self.alpha < float("inf")
        ):
            raise PruningError(f"alpha={self.alpha!r} must be a number of at least 0.")

    def signals(self) -> tuple[Signal, ...]:
        """Those of the score, and the features."""
        return (*self.criterion.signals(), Features(self.features))

    def score(self, tokens: Candidates) -> Tensor:
        """The sum: (batch, visual)."""
        images, inner = Images(tokens), self.criterion.score(tokens).float()
        if not images.longest:
            return inner
        scores = images.take(inner).masked_fill(~images.present, 0)
        variance = variety(images.directions(self.features), images.present, zones(images, self.cut, self.by))
        scale = scores.abs().sum(1, keepdim=True) / variance.sum(1, keepdim=True)
        scale = torch.where(variance.any(1, keepdim=True), scale, 0.0)
        return images.put(scores + self.alpha * scale * variance)


def variety(directions: Tensor, present: Tensor, zone: Tensor) -> Tensor:
    """Variance of the cosines to all other tokens of the zone; 0 for tokens that are alone there or absent.

    Args:
        directions: (images, n, dim) of length one.
        present: bool (images, n).
        zone: long (images, n).

    Returns:
        float32 (images, n).
    """
    images, longest, _ = directions.shape
    block, index = max(1, BLOCK // (images * longest)), torch.arange(longest, device=zone.device)
    parts = []
    for start in range(0, longest, block):
        rows = slice(start, start + block)
        other = present[:, None] & (zone[:, rows, None] == zone[:, None]) & (index[rows, None] != index)
        count = other.sum(-1, keepdim=True).clamp(min=1)
        similarity = cosines(directions[:, rows], directions).to(directions.dtype).masked_fill(~other, 0)
        apart = (similarity - similarity.sum(-1, keepdim=True) / count).masked_fill(~other, 0)
        parts.append((apart.square().sum(-1, keepdim=True) / count)[..., 0])
    found = torch.cat(parts, 1).float()
    return found.masked_fill(~present | (found < NOISE), 0)
