"""Cache layers that store fewer tokens than they stand for.

A pruned layer keeps keys and values of the surviving tokens only, yet answers every question about lengths as if
nothing had been dropped. Positions, masks and `generate`'s bookkeeping therefore stay as they are; only whoever feeds
the layer must know which stored slot stands for which position (`columns`). The layers know nothing of methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from feathervlm.core.errors import PruningError, Unprunable


class Attachment:
    """Whether the hooks that a pruned cache depends on are still there; shared by copies of the cache."""

    def __init__(self) -> None:
        self.alive = True

    def __deepcopy__(self, memo: object) -> "Attachment":
        return self

    def check(self) -> None:
        """Raise `PruningError` once the hooks are gone."""
        if not self.alive:
            raise PruningError(
                "This cache was pruned, and the pruning that made it has been removed; continue inside the same "
                "`with feathervlm.prune(...)` block, or start again with a new cache."
            )


@dataclass(frozen=True)
class Prefix:
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

    def map(self, change: Callable[[Tensor], Tensor]) -> "Prefix":
        """The prefix with `change` applied to every per-sample tensor."""
        valid = None if self.valid is None else change(self.valid)
        shift = None if self.shift is None else change(self.shift)
        return replace(self, index=change(self.index), valid=valid, shift=shift)

    @property
    def plain(self) -> bool:
        """Whether a single new token attends to every slot at its own position: no mask, nothing to shift."""
        return self.valid is None and self.shift is None


class PrunedLayer(ABC):
    """What all pruned layers share; mixed into transformers' layer classes."""

    attachment: Attachment
    prefix: Prefix | None = None
    pending: Prefix | None = None
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


class PrunedDynamicLayer(PrunedLayer, DynamicLayer):
    """A growing layer; slots after the prefix stand for the positions after it, one by one."""

    keys: Any
    values: Any
    trimmed = 0
    """Slots already forgotten on the left; only sliding layers forget."""

    def __init__(self, attachment: Attachment, layer: Any) -> None:
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
        """See `PrunedLayer.columns`."""
        index, valid = self._columns(self._tail() + new, device)
        return index[:, self.trimmed :], None if valid is None else valid[:, self.trimmed :]

    def keep(self, order: Tensor, prefix: Prefix) -> None:
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

    def __init__(self, attachment: Attachment, layer: DynamicSlidingWindowLayer) -> None:
        super().__init__(attachment, layer)
        self.sliding_window = layer.sliding_window
        self.record_past = layer.record_past
        self._sliding_window_tensor = layer._sliding_window_tensor
        stored = self._slots()
        if layer.cumulative_length > stored:  # the window has slid: slots stand for the last positions
            index = torch.arange(layer.cumulative_length - stored, layer.cumulative_length, device=self.keys.device)
            self.prefix = Prefix(index.expand(self.keys.shape[0], -1), None, layer.cumulative_length)

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


BUCKET = 64
"""Steps in which the size of a static layer changes where the number of tokens that it saves depends on the picture."""


class PrunedStaticLayer(PrunedLayer, StaticLayer):
    """A preallocated layer with room for the surviving tokens only.

    The slots after the prefix have fixed positions, so one map serves every decode step and compiled graph. The map
    always tells which slots are valid, and sizes come in steps, so that the next prompt finds the same graph.

    Args:
        attachment: what the layer depends on.
        logical_capacity: positions that it is to hold, dropped ones included.
        dropped: slots that it need not have.
        foreseen: whether that number follows from shapes alone; if not, it is saved in whole buckets.
    """

    def __init__(self, attachment: Attachment, logical_capacity: int, dropped: int, foreseen: bool) -> None:
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


def slots_of(states: Tensor, order: Tensor) -> Tensor:
    """The slots `order` (batch, n) of keys or values (batch, heads, slots, dim)."""
    order = order.to(states.device)
    if len(order) == 1:
        return states.index_select(2, order[0])  # moves whole rows
    return torch.take_along_dim(states, order[:, None, :, None], 2)


SUPPORTED = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer)


def check_cache(cache: Cache, pruned: Sequence[int]) -> None:
    """Refuse a cache whose layers of these numbers cannot be pruned.

    Raises:
        Unprunable: naming the kind of cache and the remedy.
    """
    if getattr(cache, "offloading", False):
        raise Unprunable("An offloaded cache cannot be pruned; use a plain DynamicCache, which pruning makes smaller.")
    if not isinstance(getattr(cache, "layers", None), list):
        raise Unprunable(f"A {type(cache).__name__} has no layers that could be pruned; use a DynamicCache.")
    replicated = getattr(cache, "layer_class_to_replicate", None)
    present = [cache.layers[index] for index in pruned if index < len(cache.layers)]
    kinds = [type(layer) for layer in present] + ([replicated] if replicated is not None else [])
    for kind in kinds:
        if kind not in SUPPORTED and not issubclass(kind, PrunedLayer):
            raise Unprunable(
                f"A cache with {kind.__name__} cannot be pruned (quantized, indexed and sliding static caches are not "
                "supported); use a DynamicCache, or a StaticCache on a model without sliding windows."
            )
    for layer in present:
        if isinstance(layer, StaticLayer) and layer.is_initialized and bool(layer.get_seq_length()):
            raise Unprunable("A static cache that already holds tokens cannot take a new image; use a DynamicCache.")


def pruned_layer(cache: Cache, layer: int, attachment: Attachment, dropped: int, foreseen: bool) -> PrunedLayer:
    """The pruned form of `cache.layers[layer]`, put in its place if it is not there yet.

    Args:
        cache: a cache that `check_cache` has passed.
        layer: its index.
        attachment: what the layer depends on.
        dropped: slots that a static layer need not have.
        foreseen: whether that number follows from shapes alone.
    """
    replicated = cache.layer_class_to_replicate
    while replicated is not None and len(cache.layers) <= layer:  # a DynamicCache without a config grows on demand
        cache.layers.append(replicated())
    current: Any = cache.layers[layer]
    if isinstance(current, PrunedLayer):
        current.attachment.check()
        return current
    if type(current) is StaticLayer:
        replacement: Any = PrunedStaticLayer(attachment, current.max_cache_len, dropped, foreseen)
    elif type(current) is DynamicSlidingWindowLayer:
        replacement = PrunedSlidingLayer(attachment, current)
    else:
        replacement = PrunedDynamicLayer(attachment, current)
    cache.layers[layer] = replacement
    return replacement


def restore_static(cache: Cache) -> None:
    """Give emptied static layers back their full capacity, for another prompt."""
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, PrunedStaticLayer) and layer.prefix is None:
            cache.layers[index] = StaticLayer(max_cache_len=layer.logical_capacity)


def pruned_layers(cache: object) -> dict[int, PrunedLayer]:
    """The layers of `cache` that are pruned and hold something, by their index."""
    layers = enumerate(getattr(cache, "layers", ()))
    return {index: layer for index, layer in layers if isinstance(layer, PrunedLayer) and layer.prefix is not None}
