"""What a selector sees at a stage: the visual tokens that enter it, their geometry, and signals on demand."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Geometry
from feathervlm.core.signals import Signal, Signals
from feathervlm.core.tensor_ops import lexsort


@dataclass(eq=False)
class Candidates:
    """The visual tokens of a batch as they enter a stage.

    Every tensor has the shape (batch, visual) and is indexed by *original* visual token, so that selections of
    different stages can be compared directly.

    Args:
        geometry: Coordinates of all tokens.
        present: bool tensor, False for tokens that earlier stages dropped and for padding.
        signals: The source of measurements.
        scores: Scores of the criteria that were computed at this stage, float32.
    """

    geometry: Geometry
    present: Tensor
    signals: Signals
    scores: dict["Criterion", Tensor] = field(default_factory=dict)

    def score(self, criterion: "Criterion") -> Tensor:
        """Return the scores of a criterion, float32 (batch, visual), higher = keep; computed once per stage."""
        if criterion not in self.scores:
            self.scores[criterion] = criterion.score(self).float()
        return self.scores[criterion]

    def original(self) -> Tensor:
        """Count the visual tokens that each image had before any stage: long (batch, images)."""
        return self._count(self.geometry.exists)

    def current(self) -> Tensor:
        """Count the visual tokens of each image that enter this stage: long (batch, images)."""
        return self._count(self.present)

    def _count(self, mask: Tensor) -> Tensor:
        if self.geometry.images == 1:
            return mask.sum(1, keepdim=True)
        counts = torch.zeros(mask.shape[0], self.geometry.images, dtype=torch.long, device=mask.device)
        return counts.scatter_add_(1, self.geometry.image, mask.long())


def top_per_image(scores: Tensor, tokens: Candidates, budget: Tensor, first: Tensor | None = None) -> Tensor:
    """Return the tokens with the highest scores of every image; of equal scores the lowest index.

    Args:
        scores: float tensor of shape (batch, visual).
        tokens: The candidates; absent tokens are never kept.
        budget: long tensor of shape (batch, images), number of tokens to keep of every image.
        first: bool tensor of shape (batch, visual), tokens that come before all others whatever their score.

    Returns:
        Bool tensor of shape (batch, visual).
    """
    images = budget.shape[1]
    # Absent tokens form a group of their own after all images.
    group = torch.where(tokens.present, tokens.geometry.image, images)
    by_score = torch.sort(scores, dim=1, descending=True, stable=True).indices
    order = lexsort([group] if first is None else [group, (~first).long()], by_score)
    sorted_group = group.gather(1, order)
    sizes = torch.zeros(group.shape[0], images + 1, dtype=torch.long, device=group.device)
    sizes.scatter_add_(1, group, torch.ones_like(group))
    starts = sizes.cumsum(1) - sizes
    rank = torch.arange(group.shape[1], device=group.device) - starts.gather(1, sorted_group)
    limits = torch.nn.functional.pad(budget, (0, 1))  # nothing of the absent tokens
    keep = rank < limits.gather(1, sorted_group)
    return torch.zeros_like(tokens.present).scatter_(1, order, keep)


class Criterion(ABC):
    """Base of all criteria: a frozen dataclass whose fields are its parameters."""

    def signals(self) -> tuple[Signal, ...]:
        """Return the signals that `score` reads; the engine prepares their measurement before the forward."""
        return ()

    @abstractmethod
    def score(self, tokens: Candidates) -> Tensor:
        """Compute scores of shape (batch, visual), higher = keep; absent tokens may hold any value."""


def check_criterion(value: object, name: str) -> None:
    """Raise `PruningError` unless `value` is a criterion."""
    if not isinstance(value, Criterion):
        raise PruningError(f"{name}={value!r} must be a criterion such as LastTokenAttention().")
