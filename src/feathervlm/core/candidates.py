"""What a selector sees at a stage: the visual tokens still present, their geometry, and signals on demand."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Geometry
from feathervlm.core.signals import Signal, Signals
from feathervlm.core.tensor_ops import ordered


@dataclass(eq=False)
class Candidates:
    """The visual tokens of a batch as they enter a stage.

    Every tensor is (batch, visual) and indexed by *original* visual token, so that selections of different stages
    can be compared directly; `present` is False for tokens dropped earlier and for padding.
    """

    geometry: Geometry
    present: Tensor
    signals: Signals
    scores: dict["Criterion", Tensor] = field(default_factory=dict)
    """What the criteria of this stage said, (batch, visual) float32 each."""

    def score(self, criterion: "Criterion") -> Tensor:
        """The criterion's scores, computed once per stage: (batch, visual) float32, higher = keep."""
        if criterion not in self.scores:
            self.scores[criterion] = criterion.score(self).float()
        return self.scores[criterion]

    def original(self) -> Tensor:
        """Visual tokens that each image had at first: long (batch, images)."""
        return self._count(self.geometry.exists)

    def current(self) -> Tensor:
        """Visual tokens that each image has now: long (batch, images)."""
        return self._count(self.present)

    def _count(self, which: Tensor) -> Tensor:
        if self.geometry.images == 1:
            return which.sum(1, keepdim=True)
        counts = torch.zeros(which.shape[0], self.geometry.images, dtype=torch.long, device=which.device)
        return counts.scatter_add_(1, self.geometry.image, which.long())


def top(scores: Tensor, tokens: Candidates, budget: Tensor, first: Tensor | None = None) -> Tensor:
    """Keep the best tokens of every image; of equals, the one with the lowest index.

    Args:
        scores: (batch, visual) float.
        tokens: the candidates; absent ones are never kept.
        budget: long (batch, images), how many to keep of every image.
        first: bool (batch, visual), tokens that come before all others whatever their score.

    Returns:
        bool (batch, visual).
    """
    images = budget.shape[1]
    # Absent tokens rank among themselves, behind all images.
    group = torch.where(tokens.present, tokens.geometry.image, images)
    best = torch.sort(scores, dim=1, descending=True, stable=True).indices
    order = ordered([group] if first is None else [group, (~first).long()], best)
    sorted_group = group.gather(1, order)
    sizes = torch.zeros(group.shape[0], images + 1, dtype=torch.long, device=group.device)
    sizes.scatter_add_(1, group, torch.ones_like(group))
    starts = sizes.cumsum(1) - sizes
    rank = torch.arange(group.shape[1], device=group.device) - starts.gather(1, sorted_group)
    limits = torch.nn.functional.pad(budget, (0, 1))  # nothing of the absent
    keep = rank < limits.gather(1, sorted_group)
    return torch.zeros_like(tokens.present).scatter_(1, order, keep)


class Criterion(ABC):
    """Base of all criteria: a frozen dataclass whose fields are its parameters."""

    def signals(self) -> tuple[Signal, ...]:
        """The signals that `score` reads, so that the engine can arm itself in time."""
        return ()

    @abstractmethod
    def score(self, tokens: Candidates) -> Tensor:
        """Scores (batch, visual), higher = keep; absent tokens may hold anything."""


def check_criterion(value: object, name: str) -> None:
    """Raise `PruningError` unless `value` is a criterion."""
    if not isinstance(value, Criterion):
        raise PruningError(f"{name}={value!r} must be a criterion such as LastTokenAttention().")
