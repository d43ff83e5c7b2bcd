"""Merging tokens into the nearest of some cluster centres."""

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
    """Each recycled token goes into the nearest centre, which becomes the mean of its cluster; all others are dropped.

    Args:
        of: the selector that says which tokens are recycled.

    Raises:
        PruningError: if it is none.
    """

    of: TopAndClusters

    def __post_init__(self) -> None:
        if not isinstance(self.of, TopAndClusters):
            raise PruningError(f"of={self.of!r} must be TopAndClusters(...), which says what is clustered.")

    def signals(self) -> Sequence[Signal]:
        """What the selector reads."""
        return tuple(self.of.signals())

    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        """The nearest kept token among those that are recycled, of equals the first."""
        return self.of.nearest(tokens, kept)
