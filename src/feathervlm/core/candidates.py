"""What a selector sees at a stage: the visual tokens still present, their geometry, and signals on demand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feathervlm.core.layout import Geometry
from feathervlm.core.signals import Signals

if TYPE_CHECKING:
    from feathervlm.core.criteria import Criterion


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


def ordered(keys: Sequence[Tensor], order: Tensor | None = None) -> Tensor:
    """Order by the first key, then the second, ..., ascending; equals stay in `order`, by default that of the indices.

    Args:
        keys: (batch, n) each.
        order: long (batch, n).

    Returns:
        long (batch, n), indices in order.

    >>> ordered([torch.tensor([[1, 0, 1]]), torch.tensor([[5, 6, 4]])])
    tensor([[1, 2, 0]])
    """
    if order is None:
        order = torch.arange(keys[0].shape[1], device=keys[0].device).expand_as(keys[0])
    for key in reversed(keys):  # stable sorts, so the least significant key goes first
        order = order.gather(1, torch.sort(key.gather(1, order), dim=1, stable=True).indices)
    return order


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
