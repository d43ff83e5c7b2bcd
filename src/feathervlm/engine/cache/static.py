"""A pruned cache layer of a fixed size: the static layer of transformers with room for the kept tokens only."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

from feathervlm.engine.cache.layer import HookStatus, PrunedCacheLayer

BUCKET = 64
"""Steps in which the size of a static layer changes where the number of dropped tokens depends on the picture."""


class PrunedStaticLayer(PrunedCacheLayer, StaticLayer):
    """A preallocated layer with room for the kept tokens only.

    The slots after the mapped ones have fixed positions, so one column map serves every decode step and compiled graph.
    It always contains validity, and sizes come in steps, so that the next prompt can use the same graph.

    Args:
        hook_status: Status that the layer depends on.
        logical_capacity: Number of positions to hold, those of dropped tokens included.
        dropped: Number of slots that the layer can do without.
        size_known: Whether that number follows from shapes alone; if not, it is rounded down to whole buckets.
    """

    def __init__(self, hook_status: HookStatus, logical_capacity: int, dropped: int, size_known: bool) -> None:
        saved = dropped if size_known else dropped // BUCKET * BUCKET
        super().__init__(max_cache_len=logical_capacity - saved)
        self.hook_status = hook_status
        self.logical_capacity = logical_capacity
        self.column_map: tuple[Tensor, Tensor] | None = None

    def columns(self, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return positions and validity of all slots, filled or not; causality hides the empty ones."""
        if self.column_map is None:
            slot_map = self.pending or self.slot_map
            assert slot_map is not None
            previous, self.slot_map = self.slot_map, slot_map
            index, valid = self._columns(self.max_cache_len - slot_map.index.shape[1], device)
            self.column_map = index, torch.ones_like(index, dtype=torch.bool) if valid is None else valid
            self.slot_map = previous
        return self.column_map

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values in place, and return the whole buffers."""
        self.hook_status.check()
        states: tuple[Tensor, Tensor] = StaticLayer.update(self, key_states, value_states, *args, **kwargs)
        self._apply_pending()
        return states

    def get_seq_length(self) -> Tensor | int:  # type: ignore[override]  # as in transformers: a tensor, to spare compiled graphs a sync
        """Return the number of original positions, as a tensor once initialized (see `StaticLayer`)."""
        if self.slot_map is None:
            return super().get_seq_length()
        return self.cumulative_length + (self.slot_map.logical - self.slot_map.index.shape[1])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the size and offset of the mask of the unpruned cache."""
        return self.logical_capacity, 0

    def get_max_length(self) -> int:
        """Return the capacity in original positions."""
        return self.logical_capacity

    def reset(self) -> None:
        """Remove all slots and their map."""
        super().reset()
        self.slot_map = self.pending = self.column_map = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # LongTensor is no class of its own
        self._change_map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))
        self.column_map = None
