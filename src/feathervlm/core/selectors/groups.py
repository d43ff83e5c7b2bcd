"""One token for each group that the vision encoder has merged."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.budget import ImageTokens, check_fraction, kept
from feathervlm.core.candidates import Candidates
from feathervlm.core.selectors.base import Selector
from feathervlm.core.signals import Representatives, Signal


@dataclass(frozen=True)
class OnePerGroup(Selector):
    """Keep one visual token of every group that the vision encoder has merged, where its first patch is.

    The others hold copies of its feature. A token of several patches stays if one of them is the first of its group, so
    that of small groups hardly a token leaves.

    Args:
        keep: fraction of the patches that the vision encoder keeps, for planning.
    """

    keep: float

    def __post_init__(self) -> None:
        check_fraction(self.keep)

    def signals(self) -> Iterator[Signal]:
        """Which patches stand for their group."""
        yield Representatives()

    def select(self, tokens: Candidates) -> Tensor:
        """Tokens with a patch that stands for its group."""
        return tokens.present & (tokens.signals.read(Representatives()) > 0)

    def expected(self, image: ImageTokens) -> float:
        """As if every token were one patch."""
        return min(float(kept(self.keep, image.original)), image.current)
