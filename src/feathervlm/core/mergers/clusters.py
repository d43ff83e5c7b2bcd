"""A merger that adds clustered tokens to their cluster's centre."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.candidates import Candidates
from feathervlm.core.errors import PruningError
from feathervlm.core.mergers.base import Merger
from feathervlm.core.selectors.clustering import TopAndClusters
from feathervlm.core.signals import Signal


@dataclass(frozen=True)
class Clusters(Merger):
    """Each clustered token goes into the nearest centre, which becomes its cluster's mean; other tokens are dropped.

    Args:
        selector: The selector that clusters.

    Raises:
        PruningError: If `selector` is not `TopAndClusters`.
    """

    selector: TopAndClusters

    def __post_init__(self) -> None:
        if not isinstance(self.selector, TopAndClusters):
            raise PruningError(f"selector={self.selector!r} must be TopAndClusters(...).")

    def signals(self) -> Sequence[Signal]:
        return tuple(self.selector.signals())

    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        return self.selector.nearest(tokens, kept)
