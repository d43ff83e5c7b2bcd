"""Selectors without a budget: every token that is good enough stays, so the image decides how many.

Their counts are open until the scores are there, which costs a stage one wait for the device. Plans and solvers go by
`expected_share`, the share that is usual.
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
    """A selector of all tokens whose score is above a bound, in every image at least the best one.

    Attributes:
        criterion: the score.
        expected_share: share of the tokens that usually stays; plans go by it.
    """

    criterion: Criterion
    expected_share: float

    def __post_init__(self) -> None:
        check_criterion(self.criterion, "criterion")
        check_fraction(self.expected_share, "expected_share")

    @abstractmethod
    def bound(self, scores: Tensor, present: Tensor) -> Tensor:
        """The bound of every image, (images, 1), from scores (images, n), -inf where absent."""

    def select(self, tokens: Candidates) -> Tensor:
        """All above the bound."""
        images = ImageRows(tokens)
        if not images.longest:
            return tokens.present
        scores = images.take(tokens.score(self.criterion)).masked_fill(~images.present, float("-inf"))
        above = scores > self.bound(scores, images.present)
        return images.put(
            above & images.present | first_n([-scores], images.present, torch.ones_like(above[:, 0]).long())
        )

    def expected(self, image: ImageTokens) -> float:
        """What is typical."""
        return self.expected_share * image.current


@dataclass(frozen=True)
class Threshold(Bounded):
    """Keep all tokens that score higher than `above`, in every image at least the best.

    Args:
        criterion: the score.
        above: the bound.
        expected_share: share of the tokens that usually stays; plans go by it.

    Raises:
        PruningError: if a parameter is out of range.
    """

    criterion: Criterion
    above: float
    expected_share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.above, "above")

    def bound(self, scores: Tensor, present: Tensor) -> Tensor:
        """The same for all: (images, 1)."""
        return scores.new_full((len(scores), 1), self.above)


@dataclass(frozen=True)
class IQR(Bounded):
    """Keep the outliers of each image: scores above Q3 + factor * (Q3 - Q1) (LLaVA-PruMerge, arXiv 2403.15388).

    Quartiles are interpolated linearly. In every image at least the best token stays.

    Args:
        criterion: the score.
        factor: distance from the upper quartile, in interquartile ranges.
        expected_share: share of the tokens that usually stays; plans go by it. 5.5 % is PruMerge's mean.

    Raises:
        PruningError: if a parameter is out of range.
    """

    criterion: Criterion
    factor: float = 1.5
    expected_share: float = 0.055

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.factor, "factor")

    def bound(self, scores: Tensor, present: Tensor) -> Tensor:
        """The upper fence: (images, 1)."""
        lower, upper = (quantile(scores, present, share) for share in (0.25, 0.75))
        return upper + self.factor * (upper - lower)
