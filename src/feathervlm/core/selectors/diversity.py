"""Selectors for diversity: tokens that together span an image, picked one by one.

Every pick depends on the picks before it, so these loops run once per token kept; everything else is done for all
images of the batch at once. Memory grows with kept times all tokens, never with the square of all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.budget import Keep, kept
from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.image_rows import BLOCK, ImageRows
from feathervlm.core.selectors.base import Base, ByFeatures
from feathervlm.core.signals import FeatureSource
from feathervlm.core.tensor_ops import stable_cosines

STEP = 2.0**-24
"""Gains of a determinant that differ by less than this share of the largest count as equal: summation is not exact."""


class Picks:
    """The state of picking tokens of every image one by one, as long as its budget lasts.

    Args:
        images: The candidates as rows.
        first: bool tensor of shape (images, longest), tokens to pick before all others.
        budget: long tensor of shape (images,).
    """

    def __init__(self, images: ImageRows, first: Tensor, budget: Tensor) -> None:
        self.open, self.first, self.left = images.present, first, budget
        self.chosen = torch.zeros_like(self.open)

    def pool(self) -> Tensor:
        """Return the tokens to pick from next: bool (images, longest)."""
        early = self.open & self.first
        return torch.where(early.any(1, keepdim=True), early, self.open)

    def take(self, scores: Tensor) -> Tensor:
        """Pick the token of every image with the highest score, of equal scores the lowest index: long (images, 1)."""
        pool = self.pool()
        index = scores.masked_fill(~pool, float("-inf")).argmax(1, keepdim=True)
        picked = torch.zeros_like(pool).scatter(1, index, True) & pool & (self.left > 0)[:, None]
        self.chosen, self.open, self.left = self.chosen | picked, self.open & ~picked, self.left - 1
        return index


def row_at(values: Tensor, index: Tensor) -> Tensor:
    """Return the row of values (images, n, dim) at index (images, 1): (images, 1, dim)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def nearest(directions: Tensor, present: Tensor) -> Tensor:
    """Return the highest cosine to another present token, (images, n); -inf for a token that is alone."""
    images, longest, _ = directions.shape
    block, index = max(1, BLOCK // max(1, images * longest)), torch.arange(longest, device=directions.device)
    parts = []
    for start in range(0, longest, block):
        rows = slice(start, start + block)
        other = present[:, None] & (index[rows, None] != index)
        similarity = stable_cosines(directions[:, rows], directions)
        parts.append(similarity.masked_fill(~other, float("-inf")).amax(-1))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class MaxMin(ByFeatures):
    """Keep tokens far apart: repeatedly the token whose nearest kept token is farthest (DivPrune, arXiv 2503.02175).

    Distance is 1 - cosine. The first pick is the token whose nearest neighbour among all tokens is farthest, as in the
    authors' code. A picked token is never picked again, which happens in their code once only duplicates remain.

    Args:
        keep: Fraction or number of tokens kept.
        features: "vision", "projected" or "hidden".
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.

    Raises:
        PruningError: If a parameter is out of range.
    """

    keep: Keep
    features: FeatureSource = "vision"
    of: Base = "original"

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        images, steps = ImageRows(tokens), kept(self.keep, tokens.geometry.longest)
        directions = images.directions(self.features)
        picks = Picks(images, images.mark(first), self.budget(tokens).flatten())
        distance = 1 - nearest(directions, images.present) if steps else directions.new_zeros(0)
        for step in range(steps):
            near = 1 - stable_cosines(directions, row_at(directions, picks.take(distance)))[..., 0]
            distance = torch.minimum(distance, near) if step else near
        return images.put(picks.chosen)


@dataclass(frozen=True)
class DPP(ByFeatures):
    """Keep the tokens that span the most: greedy maximum of the determinant of L_ij = r_i cos_ij r_j.

    This is a determinantal point process with relevance r on both sides, as in CDPruner (arXiv 2506.10967), solved by
    the incremental Cholesky factor of Chen et al. (arXiv 1709.05135). Relevance is scaled to [0, 1] within each image.
    Once the kept tokens span all others (no determinant gains more than 2**-24 of the largest r_i**2), the most
    relevant tokens fill the budget, or without a criterion the lowest indices.

    Args:
        keep: Fraction or number of tokens kept.
        relevance: Criterion of r, None for the same relevance everywhere.
        features: "vision", "projected" or "hidden".
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.

    Raises:
        PruningError: If a parameter is out of range.
    """

    keep: Keep
    relevance: Criterion | None = None
    features: FeatureSource = "vision"
    of: Base = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relevance is not None:
            check_criterion(self.relevance, "relevance")

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        images, steps = ImageRows(tokens), kept(self.keep, tokens.geometry.longest)
        relevance = self._relevance(images)
        vectors = images.directions(self.features)
        vectors = vectors * relevance.to(vectors)[..., None]  # inner products of these are the kernel
        volume = vectors.square().sum(-1)
        unit = STEP * volume.amax(1, keepdim=True).clamp(min=torch.finfo(volume.dtype).tiny) if steps else volume
        factor = vectors.new_zeros(len(vectors), steps, vectors.shape[1])
        picks = Picks(images, images.mark(first), self.budget(tokens).flatten())
        for step in range(steps):
            gain = (volume / unit).round()
            useful = (picks.pool() & (gain > 0)).any(1, keepdim=True)
            index = picks.take(torch.where(useful, gain.float(), relevance))
            row = (vectors @ row_at(vectors, index).transpose(1, 2))[..., 0]
            known = factor[:, :step]
            row = row - (known.gather(2, index[:, None].expand(-1, step, 1)) * known).sum(1)
            size = volume.gather(1, index)
            # A pick that the earlier ones span adds nothing to the factor.
            row = torch.where(gain.gather(1, index) > 0, row / size.clamp(min=unit / 2).sqrt(), 0)
            factor[:, step] = row
            volume = volume - row.square()
        return images.put(picks.chosen)

    def _relevance(self, images: ImageRows) -> Tensor:
        """Return r in [0, 1], float32 (images, longest)."""
        if self.relevance is None:
            return images.present.float()
        scores = images.take(images.tokens.score(self.relevance))
        if not images.longest:
            return scores
        low = scores.masked_fill(~images.present, float("inf")).amin(1, keepdim=True)
        high = scores.masked_fill(~images.present, float("-inf")).amax(1, keepdim=True)
        scaled = torch.where(high > low, (scores - low) / (high - low), 1.0)
        return scaled.masked_fill(~images.present, 0)
