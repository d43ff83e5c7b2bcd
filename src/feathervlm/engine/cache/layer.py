"""What the slots of a pruned cache layer stand for.

A pruned layer keeps keys and values of the surviving tokens only, yet answers every question about lengths as if
nothing had been dropped. Positions, masks and `generate`'s bookkeeping therefore stay as they are; only whoever feeds
the layer must know which stored slot stands for which position (`columns`). Knows neither methods nor how a layer
stores its slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError


class HookStatus:
    """Whether the hooks that a pruned cache depends on are still there; shared by copies of the cache."""

    def __init__(self) -> None:
        self.alive = True

    def __deepcopy__(self, memo: object) -> "HookStatus":
        return self

    def check(self) -> None:
        """Raise `PruningError` once the hooks are gone."""
        if not self.alive:
            raise PruningError(
                "This cache was pruned, and the pruning that made it has been removed; continue inside the same "
                "`with feathervlm.prune(...)` block, or start again with a new cache."
            )


@dataclass(frozen=True)
class SlotMap:
    """Which positions the stored slots stand for, up to the end of the last pruned forward.

    Attributes:
        index: long (batch, slots), position in the original sequence.
        valid: bool (batch, slots), False where a slot only fills up a ragged batch; None if all are real.
        logical: how many original positions the slots stand for.
        shift: long (batch, 1), how much later position ids are reduced (`renumber`), or None.
        left: whether fillers, if there are any, come before all real slots.
    """

    index: Tensor
    valid: Tensor | None
    logical: int
    shift: Tensor | None = None
    left: bool = False

    def map(self, change: Callable[[Tensor], Tensor]) -> "SlotMap":
        """The prefix with `change` applied to every per-sample tensor."""
        valid = None if self.valid is None else change(self.valid)
        shift = None if self.shift is None else change(self.shift)
        return replace(self, index=change(self.index), valid=valid, shift=shift)

    @property
    def plain(self) -> bool:
        """Whether a single new token attends to every slot at its own position: no mask, nothing to shift."""
        return self.valid is None and self.shift is None


class PrunedCacheLayer(ABC):
    """What all pruned layers share; mixed into transformers' layer classes."""

    attachment: HookStatus
    prefix: SlotMap | None = None
    pending: SlotMap | None = None
    """The prefix that becomes true when the next keys and values arrive."""

    @abstractmethod
    def columns(self, new: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Position and validity of every slot that attention will see after `new` more tokens: (batch, slots)."""

    def _settle(self) -> None:
        if self.pending is not None:
            self.prefix, self.pending = self.pending, None

    def _columns(self, tail: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        start = self.prefix.logical if self.prefix is not None else 0
        follow = torch.arange(start, start + tail, device=device)[None]
        if self.prefix is None:
            return follow, None
        index = self.prefix.index.to(device)
        follow = follow.expand(index.shape[0], -1)
        valid = self.prefix.valid
        if valid is not None:
            valid = torch.nn.functional.pad(valid.to(device), (0, tail), value=True)
        return torch.cat([index, follow], 1), valid

    def _map_prefix(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.prefix is not None:
            self.prefix = self.prefix.map(change)


def slots_of(states: Tensor, order: Tensor) -> Tensor:
    """The slots `order` (batch, n) of keys or values (batch, heads, slots, dim)."""
    order = order.to(states.device)
    if len(order) == 1:
        return states.index_select(2, order[0])  # moves whole rows
    return torch.take_along_dim(states, order[:, None, :, None], 2)
