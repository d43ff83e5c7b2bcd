"""Pruned cache layers that grow: the dynamic layers of transformers, with or without a sliding window."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from feathervlm.core.errors import PruningError
from feathervlm.engine.cache.layer import HookStatus, PrunedCacheLayer, SlotMap
from feathervlm.engine.gather import gather_slots


class PrunedDynamicLayer(PrunedCacheLayer, DynamicLayer):
    """A growing layer; slots after its map stand for the positions that follow, one by one."""

    keys: Any
    values: Any
    trimmed = 0
    """Number of slots removed on the left; only sliding layers remove slots."""

    def __init__(self, hook_status: HookStatus, layer: Any) -> None:
        super().__init__()
        self.hook_status = hook_status
        if layer.is_initialized and layer.keys is not None:
            self.lazy_initialization(layer.keys, layer.values)
            self.keys, self.values = layer.keys, layer.values

    def _slots(self) -> int:
        stored = self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0
        return self.trimmed + stored

    def _tail(self) -> int:
        return self._slots() - (0 if self.slot_map is None else self.slot_map.index.shape[1])

    def columns(self, new: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        index, valid = self._columns(self._tail() + new, device)
        return index[:, self.trimmed :], None if valid is None else valid[:, self.trimmed :]

    def keep(self, order: Tensor, slot_map: SlotMap) -> None:
        """Keep only some of the stored slots.

        Args:
            order: Slots to keep, long (batch, n).
            slot_map: The positions that they stand for.
        """
        self.keys, self.values = gather_slots(self.keys, order), gather_slots(self.values, order)
        self.slot_map, self.trimmed = slot_map, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all stored ones."""
        self.hook_status.check()
        states: tuple[Tensor, Tensor] = DynamicLayer.update(self, key_states, value_states, *args, **kwargs)
        self._apply_pending()
        return states

    def get_seq_length(self) -> int:
        """Return the number of original positions, those of dropped tokens included."""
        return (0 if self.slot_map is None else self.slot_map.logical) + self._tail()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the size and offset of the mask for the original sequence."""
        return self.get_seq_length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` positions, which must all be stored (text, not dropped tokens).

        Raises:
            PruningError: If some of them were dropped.
        """
        if tokens_to_remove > 0:
            raise PruningError(f"crop({tokens_to_remove}): a pruned cache takes minus the number of tokens to remove.")
        count = -tokens_to_remove
        mapped = count - self._tail()
        if mapped > 0 and self.slot_map is not None:
            slot_map = self.slot_map
            kept = max(slot_map.index.shape[1] - mapped, 0)
            expected = torch.arange(slot_map.logical - mapped, slot_map.logical, device=slot_map.index.device)
            intact = slot_map.index.shape[1] >= mapped and bool((slot_map.index[:, kept:] == expected).all())
            if not intact or (slot_map.valid is not None and not bool(slot_map.valid[:, kept:].all())):
                raise PruningError(
                    f"Cannot remove {count} tokens from a pruned cache, for some of them were dropped; start the "
                    "prompt again with a new cache."
                )
            self.slot_map = replace(
                slot_map,
                index=slot_map.index[:, :kept],
                valid=None if slot_map.valid is None else slot_map.valid[:, :kept],
                logical=slot_map.logical - mapped,
            )
        DynamicLayer.crop(self, tokens_to_remove)

    def reset(self) -> None:
        """Remove all slots and their map."""
        super().reset()
        self.slot_map = self.pending = None
        self.trimmed = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # LongTensor is no class of its own
        self._change_map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        super().batch_repeat_interleave(repeats)
        self._change_map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        super().batch_select_indices(indices)
        self._change_map(lambda tensor: tensor[indices.to(tensor.device), ...])


class PrunedSlidingLayer(PrunedDynamicLayer):
    """A layer whose sliding window counts *original* distance, which the gathered mask enforces.

    The last window - 1 stored slots always reach at least as far back as the window, because gaps only widen
    distances. Slots with fillers among them (a ragged batch whose later turn brought images) are never trimmed.
    """

    is_sliding = True

    def __init__(self, hook_status: HookStatus, layer: DynamicSlidingWindowLayer) -> None:
        super().__init__(hook_status, layer)
        self.sliding_window = layer.sliding_window
        self.record_past = layer.record_past
        self._sliding_window_tensor = layer._sliding_window_tensor
        stored = self._slots()
        if layer.cumulative_length > stored:  # the window has moved: slots stand for the last positions
            index = torch.arange(layer.cumulative_length - stored, layer.cumulative_length, device=self.keys.device)
            self.slot_map = SlotMap(index.expand(self.keys.shape[0], -1), None, layer.cumulative_length)

    def activate_past_recording(self) -> None:
        """Keep old states until the next `crop`, so that assisted decoding can remove tokens."""
        self.record_past = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, return all stored ones, then trim those outside the window."""
        replaces = self.pending is not None
        states = super().update(key_states, value_states, *args, **kwargs)
        if replaces:
            self.trimmed = 0  # the new map counts from the slots that were stored
        if not self.record_past:
            self._trim()
        return states

    def _trim(self) -> None:
        excess = self.keys.shape[-2] - (self.sliding_window - 1)
        if excess > 0 and (self.slot_map is None or self.slot_map.valid is None or self.slot_map.left):
            self.keys, self.values = self.keys[..., excess:, :], self.values[..., excess:, :]
            self.trimmed += excess

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the size and offset of the mask of an unpruned sliding layer of the same original length."""
        seen, window = self.get_seq_length(), self.sliding_window
        length = (window - 1 if seen >= window else seen) + query_length
        return length, max(seen - window + 1, 0)

    def get_max_length(self) -> int:
        """Return the size of the window."""
        return self.sliding_window

    def crop(self, tokens_to_remove: int) -> None:
        """Remove tokens, then trim to the window, as the unpruned layer does.

        Raises:
            PruningError: If the states to go back to were trimmed already.
        """
        if tokens_to_remove and self.trimmed and not self.record_past:
            raise PruningError(
                "The states that `crop` would go back to have left this sliding window; start the prompt again with a "
                "new cache."
            )
        super().crop(tokens_to_remove)
        if self.record_past and self.is_initialized:
            self._trim()
