"""A criterion that adds the variety of a token's part of the image to its score (HoloV)."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.image_rows import BLOCK, ImageRows
from feathervlm.core.partition import Partition, part_of_each
from feathervlm.core.signals import Features, FeatureSource, Signal
from feathervlm.core.tensor_ops import stable_cosines
from feathervlm.core.validation import check_choice, check_int, check_number

NOISE = 2.0**-44
"""Variances of float32 cosines below this are due to their rounding."""


@dataclass(frozen=True)
class LocalVariance(Criterion):
    """A score plus the variety of a token's part of the image: score + alpha * variance (HoloV, arXiv 2510.02912).

    The variance is that of the cosines to the other tokens of the part, scaled to the score by the image's mean |score|
    / mean variance.

    Args:
        criterion: Criterion of the score.
        partition: "window", "grid" or "chunk", see `feathervlm.core.partition.part_of_each`.
        partition_size: Side of a window, parts along a side, or number of chunks.
        alpha: Weight of the variance.
        features: "vision", encoder patch features before the projector, or "projected".

    Raises:
        PruningError: If a parameter is out of range.
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
        check_number(self.alpha, "alpha", minimum=0)

    def signals(self) -> tuple[Signal, ...]:
        return (*self.criterion.signals(), Features(self.features))

    def score(self, tokens: Candidates) -> Tensor:
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


def variety(directions: Tensor, present: Tensor, part: Tensor) -> Tensor:
    """Compute the variance of the cosines to all other tokens of the part; 0 for absent and single tokens.

    Args:
        directions: Unit vectors of shape (images, n, dim).
        present: bool tensor of shape (images, n).
        part: long tensor of shape (images, n).

    Returns:
        Float32 tensor of shape (images, n).
    """
    images, longest, _ = directions.shape
    block, index = max(1, BLOCK // (images * longest)), torch.arange(longest, device=part.device)
    parts = []
    for start in range(0, longest, block):
        rows = slice(start, start + block)
        other = present[:, None] & (part[:, rows, None] == part[:, None]) & (index[rows, None] != index)
        count = other.sum(-1, keepdim=True).clamp(min=1)
        similarity = stable_cosines(directions[:, rows], directions).to(directions.dtype).masked_fill(~other, 0)
        apart = (similarity - similarity.sum(-1, keepdim=True) / count).masked_fill(~other, 0)
        parts.append((apart.square().sum(-1, keepdim=True) / count)[..., 0])
    variance = torch.cat(parts, 1).float()
    return variance.masked_fill(~present | (variance < NOISE), 0)
