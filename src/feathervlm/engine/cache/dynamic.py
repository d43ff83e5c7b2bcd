"""Pruned cache layers that grow: transformers' dynamic layers, with a window or without, for the surviving tokens."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from feathervlm.core.errors import PruningError
from feathervlm.engine.cache.layer import HookStatus, PrunedCacheLayer, SlotMap, slots_of


class PrunedDynamicLayer(PrunedCacheLayer, DynamicLayer):
    """A growing layer; slots after the prefix stand for the positions after it, one by one."""

    keys: Any
    values: Any
    trimmed = 0
    """Slots already forgotten on the left; only sliding layers forget."""

    def __init__(self, attachment: HookStatus, layer: Any) -> None:
        super().__init__()
        self.attachment = attachment
        if layer.is_initialized and layer.keys is not None:
            self.lazy_initialization(layer.keys, layer.values)
            self.keys, self.values = layer.keys, layer.values

    def _slots(self) -> int:
        stored = self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0
        return self.trimmed + stored

    def _tail(self) -> int:
        return self._slots() - (0 if self.prefix is None else self.prefix.index.shape[1])

    def columns(self, new: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """See `PrunedCacheLayer.columns`."""
        index, valid = self._columns(self._tail() + new, device)
        return index[:, self.trimmed :], None if valid is None else valid[:, self.trimmed :]

    def keep(self, order: Tensor, prefix: SlotMap) -> None:
        """Store the slots `order` (batch, n) alone; `prefix` is what they stand for."""
        self.keys, self.values = slots_of(self.keys, order), slots_of(self.values, order)
        self.prefix, self.trimmed = prefix, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and return all stored keys and values."""
        self.attachment.check()
        states: tuple[Tensor, Tensor] = DynamicLayer.update(self, key_states, value_states, *args, **kwargs)
        self._settle()
        return states

    def get_seq_length(self) -> int:
        """Original positions seen, dropped ones included."""
        return (0 if self.prefix is None else self.prefix.logical) + self._tail()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Size and offset of the mask for the original sequence."""
        return self.get_seq_length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` positions, which must all be stored (text, not dropped tokens)."""
        if tokens_to_remove > 0:
            raise PruningError(f"crop({tokens_to_remove}): a pruned cache takes minus the number of tokens to remove.")
        count = -tokens_to_remove
        into_prefix = count - self._tail()
        if into_prefix > 0 and self.prefix is not None:
            prefix = self.prefix
            kept = max(prefix.index.shape[1] - into_prefix, 0)
            expected = torch.arange(prefix.logical - into_prefix, prefix.logical, device=prefix.index.device)
            intact = prefix.index.shape[1] >= into_prefix and bool((prefix.index[:, kept:] == expected).all())
            if not intact or (prefix.valid is not None and not bool(prefix.valid[:, kept:].all())):
                raise PruningError(
                    f"Cannot take {count} tokens back from a pruned cache: some of them were dropped. Start the prompt "
                    "again with a new cache."
                )
            self.prefix = replace(
                prefix,
                index=prefix.index[:, :kept],
                valid=None if prefix.valid is None else prefix.valid[:, :kept],
                logical=prefix.logical - into_prefix,
            )
        DynamicLayer.crop(self, tokens_to_remove)

    def reset(self) -> None:
        """Forget everything, pruning included."""
        super().reset()
        self.prefix = self.pending = None
        self.trimmed = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch for beam search."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # LongTensor is no class of its own
        self._map_prefix(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        super().batch_repeat_interleave(repeats)
        self._map_prefix(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        super().batch_select_indices(indices)
        self._map_prefix(lambda tensor: tensor[indices, ...])


class PrunedSlidingLayer(PrunedDynamicLayer):
    """A layer whose window holds in *original* distance; the gathered mask enforces it.

    The last window - 1 stored slots always reach at least as far back as the window, because gaps only widen
    distances. Slots with fillers among them (a ragged batch whose later turn brought images) are never trimmed.
    """

    is_sliding = True

    def __init__(self, attachment: HookStatus, layer: DynamicSlidingWindowLayer) -> None:
        super().__init__(attachment, layer)
        self.sliding_window = layer.sliding_window
        self.record_past = layer.record_past
        self._sliding_window_tensor = layer._sliding_window_tensor
        stored = self._slots()
        if layer.cumulative_length > stored:  # the window has slid: slots stand for the last positions
            index = torch.arange(layer.cumulative_length - stored, layer.cumulative_length, device=self.keys.device)
            self.prefix = SlotMap(index.expand(self.keys.shape[0], -1), None, layer.cumulative_length)

    def activate_past_recording(self) -> None:
        """Keep old states until the next `crop`, so that assisted decoding can take tokens back."""
        self.record_past = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, return everything stored, then forget what the window has left behind."""
        replaced = self.pending is not None
        states = super().update(key_states, value_states, *args, **kwargs)
        if replaced:
            self.trimmed = 0  # the new prefix counts from the slots that were stored
        if not self.record_past:
            self._trim()
        return states

    def _trim(self) -> None:
        excess = self.keys.shape[-2] - (self.sliding_window - 1)
        if excess > 0 and (self.prefix is None or self.prefix.valid is None or self.prefix.left):
            self.keys, self.values = self.keys[..., excess:, :], self.values[..., excess:, :]
            self.trimmed += excess

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As an unpruned sliding layer of the same original length."""
        seen, window = self.get_seq_length(), self.sliding_window
        length = (window - 1 if seen >= window else seen) + query_length
        return length, max(seen - window + 1, 0)

    def get_max_length(self) -> int:
        """The window."""
        return self.sliding_window

    def crop(self, tokens_to_remove: int) -> None:
        """As the unpruned layer: take tokens back, then trim to the window."""
        if tokens_to_remove and self.trimmed and not self.record_past:
            raise PruningError("This sliding window has forgotten the states that `crop` would go back to.")
        super().crop(tokens_to_remove)
        if self.record_past and self.is_initialized:
            self._trim()
