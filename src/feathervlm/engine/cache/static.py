"""A pruned cache layer of a fixed size: transformers' static layer with room for the surviving tokens only."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

from feathervlm.engine.cache.layer import HookStatus, PrunedCacheLayer

BUCKET = 64
"""Steps in which the size of a static layer changes where the number of tokens that it saves depends on the picture."""


class PrunedStaticLayer(PrunedCacheLayer, StaticLayer):
    """A preallocated layer with room for the surviving tokens only.

    The slots after the prefix have fixed positions, so one map serves every decode step and compiled graph. The map
    always tells which slots are valid, and sizes come in steps, so that the next prompt finds the same graph.

    Args:
        attachment: what the layer depends on.
        logical_capacity: positions that it is to hold, dropped ones included.
        dropped: slots that it need not have.
        foreseen: whether that number follows from shapes alone; if not, it is saved in whole buckets.
    """

    def __init__(self, attachment: HookStatus, logical_capacity: int, dropped: int, foreseen: bool) -> None:
        spare = dropped if foreseen else dropped // BUCKET * BUCKET
        super().__init__(max_cache_len=logical_capacity - spare)
        self.attachment = attachment
        self.logical_capacity = logical_capacity
        self.map: tuple[Tensor, Tensor] | None = None

    def columns(self, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions of all slots, filled or not; causality hides those still empty."""
        if self.map is None:
            prefix = self.pending or self.prefix
            assert prefix is not None
            settled, self.prefix = self.prefix, prefix
            index, valid = self._columns(self.max_cache_len - prefix.index.shape[1], device)
            self.map = index, torch.ones_like(index, dtype=torch.bool) if valid is None else valid
            self.prefix = settled
        return self.map

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write in place, and return the whole buffers."""
        self.attachment.check()
        states: tuple[Tensor, Tensor] = StaticLayer.update(self, key_states, value_states, *args, **kwargs)
        self._settle()
        return states

    def get_seq_length(self) -> Tensor | int:  # type: ignore[override]  # as in transformers: a tensor, to spare compiled graphs a sync
        """Original positions seen, as a tensor once initialised (see `StaticLayer`)."""
        if self.prefix is None:
            return super().get_seq_length()
        return self.cumulative_length + (self.prefix.logical - self.prefix.index.shape[1])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask of the unpruned cache."""
        return self.logical_capacity, 0

    def get_max_length(self) -> int:
        """Capacity in original positions."""
        return self.logical_capacity

    def reset(self) -> None:
        """Forget everything, pruning included."""
        super().reset()
        self.prefix = self.pending = self.map = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # LongTensor is no class of its own
        self._map_prefix(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))
        self.map = None
