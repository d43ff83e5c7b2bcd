"""The base of pruned cache layers: which position each stored slot stands for.

A pruned layer stores keys and values of the tokens that stay only, yet reports lengths as if nothing had been dropped.
Positions, masks and the bookkeeping of `generate` therefore stay as they are; only the code that feeds the layer asks
which stored slot stands for which position (`columns`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError


class HookStatus:
    """Whether the hooks that a pruned cache depends on still exist; copies of the cache share it."""

    def __init__(self) -> None:
        self.alive = True

    def __deepcopy__(self, memo: object) -> "HookStatus":
        return self

    def check(self) -> None:
        """Raise `PruningError` once the hooks are removed."""
        if not self.alive:
            raise PruningError(
                "This cache was pruned, and the pruning that made it has been removed; continue inside the same "
                "`with feathervlm.prune(...)` block, or start again with a new cache."
            )


@dataclass(frozen=True)
class SlotMap:
    """The positions that stored slots stand for, up to the end of the last pruned forward.

    Attributes:
        index: Position of every slot in the original sequence, long (batch, slots).
        valid: False for slots that only fill up a ragged batch, bool (batch, slots); None if all slots are real.
        logical: Number of original positions that the slots stand for.
        shift: Number by which later position ids are reduced (`renumber`), long (batch, 1); None if they are not.
        left: Whether fillers, if there are any, come before all real slots.
    """

    index: Tensor
    valid: Tensor | None
    logical: int
    shift: Tensor | None = None
    left: bool = False

    def map(self, change: Callable[[Tensor], Tensor]) -> "SlotMap":
        """Return the map with `change` applied to every per-sample tensor."""
        valid = None if self.valid is None else change(self.valid)
        shift = None if self.shift is None else change(self.shift)
        return replace(self, index=change(self.index), valid=valid, shift=shift)

    @property
    def plain(self) -> bool:
        """Whether a single new token attends to every slot at its own position: no mask, no shift."""
        return self.valid is None and self.shift is None


class PrunedCacheLayer(ABC):
    """Base of all pruned layers, mixed into the layer classes of transformers."""

    hook_status: HookStatus
    slot_map: SlotMap | None = None
    """The positions of the first slots; the slots after these stand for the positions that follow, one by one."""
    pending: SlotMap | None = None
    """The map that replaces `slot_map` when the next keys and values arrive."""

    @abstractmethod
    def columns(self, new: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return the positions and validity, (batch, slots), of all slots that are attended to after `new` tokens."""

    def _apply_pending(self) -> None:
        if self.pending is not None:
            self.slot_map, self.pending = self.pending, None

    def _columns(self, tail: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        start = self.slot_map.logical if self.slot_map is not None else 0
        follow = torch.arange(start, start + tail, device=device)[None]
        if self.slot_map is None:
            return follow, None
        index = self.slot_map.index.to(device)
        follow = follow.expand(index.shape[0], -1)
        valid = self.slot_map.valid
        if valid is not None:
            valid = torch.nn.functional.pad(valid.to(device), (0, tail), value=True)
        return torch.cat([index, follow], 1), valid

    def _change_map(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.slot_map is not None:
            self.slot_map = self.slot_map.map(change)
