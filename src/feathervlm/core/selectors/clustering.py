"""Token recycling (SparseVLM): the best dropped tokens are clustered, and each cluster's mean stays as one token.

Clusters are centre by density peaks (DPC-kNN): a centre has many tokens near it and no denser token near it. The centre
keeps its index and takes in the other tokens of its cluster, see `feathervlm.core.mergers.clusters`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.budget import ImageTokens, check_fraction, truncated
from feathervlm.core.candidates import Candidates, top_per_image
from feathervlm.core.errors import PruningError
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.selectors.base import Ranked, Selector
from feathervlm.core.signals import Features, FeatureSource, Signal
from feathervlm.core.tensor_ops import density_peaks, first_n, pairwise_distances
from feathervlm.core.validation import check_choice, check_int


@dataclass(frozen=True)
class TopAndClusters(Selector):
    """Keep what `first` keeps, and the centres of the clusters of the next best tokens (SparseVLM, arXiv 2410.04417).

    Of the R tokens of an image that `first` drops, the best int(share * R) + 1 = n form int(n / group) + 1 clusters.
    Centres are the tokens with the highest density times distance to a denser token (`KNNDensity`), with as many
    neighbours as there are clusters. Of equal tokens the lower index wins.

    Args:
        first: Selector of the tokens that stay in any case, whose scores also rank the others.
        share: Share of the dropped tokens that are clustered.
        group: Approximate number of tokens per cluster.
        features: Features of the distances: "hidden", the states that enter the stage's layer, "projected" or "vision".

    Raises:
        PruningError: If a parameter is out of range.
    """

    first: Ranked
    share: float = 0.3
    group: int = 10
    features: FeatureSource = "hidden"

    def __post_init__(self) -> None:
        if not isinstance(self.first, Ranked):
            raise PruningError(f"first={self.first!r} must be a selector that ranks tokens, such as Top(...).")
        check_fraction(self.share, "share")
        check_int(self.group, "group")
        check_choice(self.features, ("hidden", "projected", "vision"), "features")

    def signals(self) -> Iterator[Signal]:
        yield from self.first.signals()
        yield Features(self.features)

    def select(self, tokens: Candidates) -> Tensor:
        return self.first.select(tokens) | self._pool(tokens).centres(self.group)

    def expected(self, image: ImageTokens) -> float:
        first = self.first.expected(image)
        rest = round(image.current - first)
        return min(first + self._clusters(min(int(rest * self.share) + 1, rest)), image.current)

    def size(self, image: ImageTokens) -> int | None:
        first = self.first.size(image)
        return None if first is None else int(self.expected(image))

    def nearest(self, tokens: Candidates, centres: Tensor) -> Tensor:
        """Return the nearest centre of every clustered token, -1 for all other tokens: long (batch, visual).

        Args:
            tokens: The candidates.
            centres: bool tensor of shape (batch, visual); tokens that are not clustered are ignored.
        """
        return self._pool(tokens).nearest(centres)

    def _clusters(self, pool: int) -> int:
        return min(pool // self.group + 1, pool)

    def _pool(self, tokens: Candidates) -> "Shortlist":
        """Return the tokens to be clustered."""
        rest = Candidates(tokens.geometry, tokens.present & ~self.first.select(tokens), tokens.signals)
        count = rest.current()
        count = (truncated(self.share, count) + 1).minimum(count)
        chosen = top_per_image(tokens.score(self.first.ranking), rest, count)
        return Shortlist(tokens, chosen, int(tokens.geometry.longest * self.share) + 1, self.features)


class Shortlist:
    """Chosen tokens of every image side by side, (images, most), so that the other tokens need no memory.

    Args:
        tokens: The candidates.
        chosen: bool tensor of shape (batch, visual).
        most: Largest number of chosen tokens of an image.
        features: Features of the distances.
    """

    def __init__(self, tokens: Candidates, chosen: Tensor, most: int, features: FeatureSource) -> None:
        self.images = images = ImageRows(tokens)
        marked = images.mark(chosen)
        # In their own order, so that the lower index stays the lower index.
        self.place = torch.sort((~marked).to(torch.uint8), dim=1, stable=True).indices[:, :most]
        self.members = marked.gather(1, self.place)
        index = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
        self.index = images.take(index).gather(1, self.place)  # among the visual tokens of the sample
        read = images.take(tokens.signals.read(Features(features)).to(chosen.device))
        place = self.place[..., None].expand(*self.place.shape, read.shape[-1])
        self.features = read.gather(1, place).float()

    def centres(self, group: int) -> Tensor:
        """Return the density peaks: bool (batch, visual)."""
        count = self.members.sum(1)
        clusters = (count // group + 1).minimum(count)
        peaks = first_n([-density_peaks(self.features, self.members, clusters)], self.members, clusters)
        return self._put(peaks, False)

    def nearest(self, centres: Tensor) -> Tensor:
        """Return the nearest centre of each chosen token, the first of equally near ones; -1 for the others."""
        targets = self.images.mark(centres).gather(1, self.place) & self.members
        if not targets.shape[1]:
            return torch.full_like(centres, -1, dtype=torch.long)
        distance = (
            pairwise_distances(self.features).nan_to_num(float("inf")).masked_fill(~targets[:, None], float("inf"))
        )
        centre = self.index.gather(1, distance.argmin(-1))
        return self._put(torch.where(self.members & targets.any(1, keepdim=True), centre, -1), -1)

    def _put(self, values: Tensor, rest: int) -> Tensor:
        """Return values (images, most) as (batch, visual), with `rest` for all other tokens."""
        whole = values.new_full((len(values), self.images.longest), rest)
        return self.images.put(whole.scatter(1, self.place, values))
