"""What a stage may do to the layers before it: cut the keys and values that they have cached to the tokens that stay.

These layers have run on all tokens, so the prompt is as it was; what is decoded later finds the same tokens in every
layer. Knows caches and the rows that are left, neither signals nor methods.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from feathervlm.engine.cache.layer import HookStatus, SlotMap, slots_of
from feathervlm.engine.cache.static import PrunedStaticLayer
from feathervlm.engine.cache.support import pruned_layer
from feathervlm.engine.rows import RowTracker


class EarlierLayers:
    """Cuts layers of one cache to the rows that are left.

    Args:
        cache: of the forward.
        left: the rows that are left.
        past: cached positions of earlier turns, all of whose slots stay.
        attachment: what the cut layers depend on.
    """

    def __init__(self, cache: Cache, left: RowTracker, past: int, attachment: HookStatus) -> None:
        self.cache, self.left, self.past, self.attachment = cache, left, past, attachment
        self.device = left.positions.device
        self.memo: dict[Hashable, tuple[Tensor, SlotMap]] = {}
        real = torch.ones_like(left.positions, dtype=torch.bool) if left.valid is None else left.valid
        stays = torch.ones(left.batch, past + left.sequence, dtype=torch.bool, device=self.device)
        stays[:, past:] = False
        self.stays = stays.scatter(1, left.positions + past, real)  # for every original position

    def cut(self, index: int, rows: int, alike: Hashable) -> None:
        """Leave in layer `index` the slots of earlier turns and of the rows that are left.

        Args:
            index: of the layer, whose cache is one that can be pruned.
            rows: how many rows of this forward it has been given.
            alike: the same for layers whose slots stand for the same positions.
        """
        current: Any = self.cache.layers[index]
        if isinstance(current, StaticLayer):
            self.cache.layers[index] = self._smaller(current, rows, alike)
            return
        layer: Any = pruned_layer(self.cache, index, self.attachment, 0, foreseen=True)
        if alike not in self.memo:
            slid = layer.is_sliding and layer.get_seq_length() >= layer.sliding_window
            self.memo[alike] = self._order(layer.columns(0, self.device), rows, layer.prefix, slid)
        layer.keep(*self.memo[alike])

    def _smaller(self, layer: Any, rows: int, alike: Hashable) -> PrunedStaticLayer:
        """A static layer with room for what is left; it held nothing before this forward."""
        before = layer.prefix if isinstance(layer, PrunedStaticLayer) else None
        capacity = layer.max_cache_len if before is None else layer.logical_capacity
        if alike not in self.memo:
            every = torch.arange(rows, device=self.device)[None], None
            stored = every if before is None else (before.index, before.valid)
            self.memo[alike] = self._order(stored, rows, before, slid=False)
        order, prefix = self.memo[alike]
        smaller = PrunedStaticLayer(self.attachment, capacity, self.left.dropped, self.left.foreseen)
        smaller.pending = prefix
        smaller.update(slots_of(layer.keys, order), slots_of(layer.values, order))
        smaller.columns(0, self.device)  # makes its map, now and not in a compiled graph
        return smaller

    def _order(
        self, stored: tuple[Tensor, Tensor | None], rows: int, before: SlotMap | None, slid: bool
    ) -> tuple[Tensor, SlotMap]:
        """The slots to keep, long (batch, n), and what they then stand for.

        Args:
            stored: position and validity of every slot.
            rows: how many rows of this forward the layer has been given.
            before: what its slots stood for, if any had left.
            slid: whether a window may have left some of the rows behind.
        """
        columns, valid = stored
        columns = columns.expand(self.left.batch, -1)
        keep = self.stays.gather(1, columns)
        if valid is not None:
            keep = keep & valid
        slots = columns.shape[1]
        most = min(slots - min(rows, slots) + self.left.positions.shape[1], slots)
        # As in a stage, those with fewer are filled on the left, with slots that stay masked.
        order = torch.sort(keep.to(torch.uint8), dim=1, stable=True).indices[:, slots - most :]
        exact = self.left.valid is None and valid is None and not slid
        logical = self.past + self.left.sequence
        shift = None if before is None else before.shift
        return order, SlotMap(
            columns.gather(1, order), None if exact else keep.gather(1, order), logical, shift, left=True
        )
