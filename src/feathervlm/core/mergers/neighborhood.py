"""A merger by place and similarity: kept tokens add tokens that are near them in the picture and similar to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.mergers.base import AdditiveMerger
from feathervlm.core.mergers.nearest import similarities
from feathervlm.core.partition import largest_of_plane
from feathervlm.core.signals import Signal, Vectors, check_vectors
from feathervlm.core.tensor_ops import quantile
from feathervlm.core.validation import check_number


@dataclass(frozen=True)
class Neighborhood(AdditiveMerger):
    """Each kept token adds its surroundings: x_i + sum_{j != i} (W_ij / sum_k W_ik) x_j (Nuwa, arXiv 2602.02951).

    W_ij = max(0, cos_ij) * max(0, 1 - distance_ij / R), over all tokens of the plane and frame; i itself counts in the
    sum over k, so the others add less than one token. R is `reach` times the distance between opposite corners.
    Pillars, the best of the kept tokens, add nothing.

    Args:
        vectors: Signal that is compared.
        score: Criterion by which kept tokens are pillars.
        reach: R as a share of the plane's diagonal. Nuwa's R of sqrt(280) cells on 24 x 24 is 0.514.
        pillars: Quantile of the scores of an image's kept tokens, interpolated linearly, from which on a token is a
            pillar; with 0 all of them are.

    Raises:
        PruningError: If a parameter is of the wrong kind or out of range.
    """

    vectors: Vectors
    score: Criterion
    reach: float = (280 / 1058) ** 0.5
    pillars: float = 0.55

    def __post_init__(self) -> None:
        check_vectors(self.vectors)
        check_criterion(self.score, "score")
        check_number(self.reach, "reach", above=0)
        check_number(self.pillars, "pillars", minimum=0, maximum=1)

    def signals(self) -> Sequence[Signal]:
        return (self.vectors, *self.score.signals())

    def mix(self, tokens: Candidates, kept: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        place, takes = tokens.geometry, kept & ~self._pillars(tokens, kept)
        index, radius = torch.arange(kept.shape[1], device=kept.device), self._radius(tokens)
        for rows, cosine in similarities(tokens.signals.read(self.vectors), tokens):
            down, across, apart, over = (
                part[:, rows, None] - part[:, None] for part in (place.row, place.col, place.plane, place.frame)
            )
            near = (1 - (down.square() + across.square()).float().sqrt() / radius[:, rows, None]).clamp(min=0)
            weight = (cosine.clamp(min=0) * near).masked_fill((apart != 0) | (over != 0), 0)
            total = weight.sum(-1, keepdim=True)
            others = weight.masked_fill((index[rows, None] == index) | ~takes[:, rows, None], 0)
            part = others / torch.where(total > 0, total, 1)
            yield rows, part, part.masked_fill(part == 0, float("-inf"))

    def _pillars(self, tokens: Candidates, kept: Tensor) -> Tensor:
        """Return the kept tokens that add nothing: bool (batch, visual)."""
        images = ImageRows(tokens)
        if not images.longest:
            return kept
        scores, there = images.take(tokens.score(self.score)), images.mark(kept)
        return images.put(there & (scores >= quantile(scores, there, self.pillars)))

    def _radius(self, tokens: Candidates) -> Tensor:
        """Return R in cells for every token, float32 (batch, visual); any positive number for a plane of one cell."""
        images = ImageRows(tokens)
        if not images.longest:
            return torch.ones_like(tokens.present, dtype=torch.float32)
        plane, row, col = (
            images.take(part).masked_fill(~images.exists, 0)
            for part in (tokens.geometry.plane, tokens.geometry.row, tokens.geometry.col)
        )
        down, across = (largest_of_plane(side, plane) for side in (row, col))
        diagonal = (down.square() + across.square()).float().sqrt()
        return images.put(self.reach * diagonal).clamp(min=torch.finfo(torch.float32).tiny)
