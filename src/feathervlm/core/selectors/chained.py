"""One selector after another, in one stage."""

from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.budget import ImageTokens
from feathervlm.core.candidates import Candidates
from feathervlm.core.selectors.base import Selector, check_operands


@dataclass(frozen=True)
class Chained(Selector):
    """Let one selector choose among the tokens that another one keeps, as if each had a stage of its own.

    Args:
        first: The selector that sees all tokens.
        second: The selector that sees what `first` keeps.
    """

    first: Selector
    second: Selector

    def __post_init__(self) -> None:
        check_operands(self.first, self.second)

    def select(self, tokens: Candidates) -> Tensor:
        left = Candidates(tokens.geometry, tokens.present & self.first.select(tokens), tokens.signals)
        kept = self.second.select(left)
        for criterion, scores in left.scores.items():
            tokens.scores.setdefault(criterion, scores)
        return kept

    def expected(self, image: ImageTokens) -> float:
        return self.second.expected(ImageTokens(image.picture, self.first.expected(image)))

    def size(self, image: ImageTokens) -> int | None:
        left = self.first.size(image)
        return None if left is None else self.second.size(ImageTokens(image.picture, left))
