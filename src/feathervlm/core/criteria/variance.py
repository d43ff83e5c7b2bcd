"""Scores by the variety of what surrounds a token."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.errors import PruningError
from feathervlm.core.image_rows import BLOCK, ImageRows
from feathervlm.core.partition import Partition, part_of_each
from feathervlm.core.signals import Features, FeatureSource, Signal
from feathervlm.core.tensor_ops import stable_cosines
from feathervlm.core.validation import check_choice, check_int

NOISE = 2.0**-44
"""A variance of float32 cosines below this is that of their rounding."""


@dataclass(frozen=True)
class LocalVariance(Criterion):
    """A score plus the variety of a token's surroundings: score + alpha * variance (HoloV, arXiv 2510.02912).

    The variance is that of the cosines to the other tokens of its zone, brought to the scale of the score by the
    image's mean |score| / mean variance.

    Args:
        criterion: the score.
        partition: "window", "grid" or "chunk", as in `Zone`.
        partition_size: see `Zone`.
        alpha: weight of the variance.
        features: "vision", encoder patch features before the projector, or "projected".

    Raises:
        PruningError: if a parameter is out of range.
    """

    criterion: Criterion
    partition: Partition = "chunk"
    partition_size: int = 16
    alpha: float = 0.09
    features: FeatureSource = "vision"

    def __post_init__(self) -> None:
        check_criterion(self.criterion, "criterion")
        check_choice(self.partition, get_args(Partition), "partition")
        check_int(self.partition_size, "partition_size")
        check_choice(self.features, get_args(FeatureSource), "features")
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
        images, inner = ImageRows(tokens), self.criterion.score(tokens).float()
        if not images.longest:
            return inner
        scores = images.take(inner).masked_fill(~images.present, 0)
        variance = variety(
            images.directions(self.features), images.present, part_of_each(images, self.partition, self.partition_size)
        )
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
        similarity = stable_cosines(directions[:, rows], directions).to(directions.dtype).masked_fill(~other, 0)
        apart = (similarity - similarity.sum(-1, keepdim=True) / count).masked_fill(~other, 0)
        parts.append((apart.square().sum(-1, keepdim=True) / count)[..., 0])
    found = torch.cat(parts, 1).float()
    return found.masked_fill(~present | (found < NOISE), 0)
