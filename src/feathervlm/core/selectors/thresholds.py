"""Selectors without a budget: every token that is good enough stays, so the image decides how many.

Their counts depend on the scores, which costs a stage one device sync. Plans and solvers use `expected_share`.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.budget import ImageTokens, check_fraction
from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.selectors.base import Selector
from feathervlm.core.tensor_ops import first_n, quantile
from feathervlm.core.validation import check_number


class Bounded(Selector):
    """A selector of all tokens whose score is above a bound, and of the best token of every image.

    Attributes:
        criterion: Criterion of the score.
        expected_share: Share of the tokens that is expected to stay, for planning.
    """

    criterion: Criterion
    expected_share: float

    def __post_init__(self) -> None:
        check_criterion(self.criterion, "criterion")
        check_fraction(self.expected_share, "expected_share")

    @abstractmethod
    def bound(self, scores: Tensor, present: Tensor) -> Tensor:
        """Compute the bound of every image, (images, 1), from scores (images, n), -inf where absent."""

    def select(self, tokens: Candidates) -> Tensor:
        """All above the bound."""
        images = ImageRows(tokens)
        if not images.longest:
            return tokens.present
        scores = images.take(tokens.score(self.criterion)).masked_fill(~images.present, float("-inf"))
        above = scores > self.bound(scores, images.present)
        best = first_n([-scores], images.present, torch.ones_like(above[:, 0]).long())
        return images.put(above & images.present | best)

    def expected(self, image: ImageTokens) -> float:
        """What is typical."""
        return self.expected_share * image.current


@dataclass(frozen=True)
class Threshold(Bounded):
    """Keep all tokens that score higher than `above`, and the best token of every image.

    Args:
        criterion: Criterion of the score.
        above: The bound.
        expected_share: Share of the tokens that is expected to stay, for planning.

    Raises:
        PruningError: If a parameter is out of range.
    """

    criterion: Criterion
    above: float
    expected_share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.above, "above")

    def bound(self, scores: Tensor, present: Tensor) -> Tensor:
        return scores.new_full((len(scores), 1), self.above)


@dataclass(frozen=True)
class IQR(Bounded):
    """Keep the outliers of each image: scores above Q3 + factor * (Q3 - Q1) (LLaVA-PruMerge, arXiv 2403.15388).

    Quartiles are interpolated linearly. The best token of every image always stays.

    Args:
        criterion: Criterion of the score.
        factor: Distance from the upper quartile, in interquartile ranges.
        expected_share: Share of the tokens that is expected to stay, for planning; 5.5 % is PruMerge's mean.

    Raises:
        PruningError: If a parameter is out of range.
    """

    criterion: Criterion
    factor: float = 1.5
    expected_share: float = 0.055

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.factor, "factor")

    def bound(self, scores: Tensor, present: Tensor) -> Tensor:
        lower, upper = (quantile(scores, present, share) for share in (0.25, 0.75))
        return upper + self.factor * (upper - lower)
