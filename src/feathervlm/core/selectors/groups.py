"""A selector that keeps one token of each group that the vision encoder has merged."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.budget import ImageTokens, check_fraction, kept
from feathervlm.core.candidates import Candidates
from feathervlm.core.selectors.base import Selector
from feathervlm.core.signals import Representatives, Signal


@dataclass(frozen=True)
class OnePerGroup(Selector):
    """Keep one visual token of every group that the vision encoder has merged, at the place of the group's first patch.

    The other tokens hold copies of its feature. A token of several patches stays if one of them is the first of its
    group, so that few tokens leave where groups are small.

    Args:
        keep: Fraction of the patches that the vision encoder keeps, for planning.
    """

    keep: float

    def __post_init__(self) -> None:
        check_fraction(self.keep)

    def signals(self) -> Iterator[Signal]:
        yield Representatives()

    def select(self, tokens: Candidates) -> Tensor:
        return tokens.present & (tokens.signals.read(Representatives()) > 0)

    def expected(self, image: ImageTokens) -> float:
        return min(float(kept(self.keep, image.original)), image.current)
