"""Recycling: the best of the tokens that are to go are clustered, and a cluster's mean lives on as one token.

Clusters come of density peaks (DPC-kNN): a token is a centre if many are near it and none that is denser. The centre is
kept in the place that it has and takes the others of its cluster in. Knows nothing of what made the first choice.
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
    """What `first` keeps, and the centres of the clusters of the next best (SparseVLM, arXiv 2410.04417).

    Of the R tokens that `first` leaves in an image the best int(share * R) + 1, n of them, form int(n / group) + 1
    clusters. Centres are the tokens with the highest density times distance to a denser one (`KNNDensity`), with as
    many neighbours as there are clusters. Ties go to the lower index.

    Args:
        first: tokens that stay in any case, and by whose score others are the next best.
        share: of the tokens that are left, to be clustered.
        group: tokens to a cluster, about.
        features: what tells distances: "hidden", the states that enter the stage's layer, "projected" or "vision".

    Raises:
        PruningError: if a parameter is out of range.
    """

    first: Ranked
    share: float = 0.3
    group: int = 10
    features: FeatureSource = "hidden"

    def __post_init__(self) -> None:
        if not isinstance(self.first, Ranked):
            raise PruningError(f"first={self.first!r} must rank tokens, as Top(...) does.")
        check_fraction(self.share, "share")
        check_int(self.group, "group")
        check_choice(self.features, ("hidden", "projected", "vision"), "features")

    def signals(self) -> Iterator[Signal]:
        """Those of the first choice, and features."""
        yield from self.first.signals()
        yield Features(self.features)

    def select(self, tokens: Candidates) -> Tensor:
        """The first choice and the centres."""
        return self.first.select(tokens) | self._pool(tokens).centres(self.group)

    def expected(self, image: ImageTokens) -> float:
        """Both numbers."""
        first = self.first.expected(image)
        rest = round(image.current - first)
        return min(first + self._clusters(min(int(rest * self.share) + 1, rest)), image.current)

    def size(self, image: ImageTokens) -> int | None:
        """Known if that of the first choice is."""
        first = self.first.size(image)
        return None if first is None else int(self.expected(image))

    def nearest(self, tokens: Candidates, centres: Tensor) -> Tensor:
        """The nearest centre of every token that is clustered, -1 of all others: long (batch, visual).

        Args:
            tokens: the candidates.
            centres: bool (batch, visual); those that are not among the clustered do not count.
        """
        return self._pool(tokens).nearest(centres)

    def _clusters(self, pool: int) -> int:
        return min(pool // self.group + 1, pool)

    def _pool(self, tokens: Candidates) -> "Shortlist":
        """The tokens to be clustered."""
        rest = Candidates(tokens.geometry, tokens.present & ~self.first.select(tokens), tokens.signals)
        count = rest.current()
        count = (truncated(self.share, count) + 1).minimum(count)
        chosen = top_per_image(tokens.score(self.first.ranking), rest, count)
        return Shortlist(tokens, chosen, int(tokens.geometry.longest * self.share) + 1, self.features)


class Shortlist:
    """Tokens of every image side by side, (images, most), so that what they leave out takes no room.

    Args:
        tokens: the candidates.
        chosen: bool (batch, visual).
        most: as many as an image can have of them.
        features: what tells distances.
    """

    def __init__(self, tokens: Candidates, chosen: Tensor, most: int, features: FeatureSource) -> None:
        self.images = images = ImageRows(tokens)
        marked = images.mark(chosen)
        # In their own order, so that the lower index stays the lower one.
        self.place = torch.sort((~marked).to(torch.uint8), dim=1, stable=True).indices[:, :most]
        self.members = marked.gather(1, self.place)
        index = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
        self.index = images.take(index).gather(1, self.place)  # among the visual tokens of the sample
        read = images.take(tokens.signals.read(Features(features)).to(chosen.device))
        place = self.place[..., None].expand(*self.place.shape, read.shape[-1])
        self.features = read.gather(1, place).float()

    def centres(self, group: int) -> Tensor:
        """The density peaks: bool (batch, visual)."""
        count = self.members.sum(1)
        wanted = (count // group + 1).minimum(count)
        peaks = first_n([-density_peaks(self.features, self.members, wanted)], self.members, wanted)
        return self._put(peaks, False)

    def nearest(self, centres: Tensor) -> Tensor:
        """The nearest centre of each, of equals the first, else -1: long (batch, visual)."""
        able = self.images.mark(centres).gather(1, self.place) & self.members
        if not able.shape[1]:
            return torch.full_like(centres, -1, dtype=torch.long)
        distance = pairwise_distances(self.features).nan_to_num(float("inf")).masked_fill(~able[:, None], float("inf"))
        found = self.index.gather(1, distance.argmin(-1))
        return self._put(torch.where(self.members & able.any(1, keepdim=True), found, -1), -1)

    def _put(self, values: Tensor, rest: int) -> Tensor:
        """Values (images, most) as (batch, visual), `rest` for all other tokens of the images."""
        whole = values.new_full((len(values), self.images.longest), rest)
        return self.images.put(whole.scatter(1, self.place, values))
