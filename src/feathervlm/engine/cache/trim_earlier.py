"""Trimming the cache of the layers before a stage to the tokens that the stage keeps.

These layers have run on all tokens, so the prompt itself is unchanged; tokens decoded later find the same tokens in
every layer.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from feathervlm.engine.cache.layer import HookStatus, SlotMap
from feathervlm.engine.cache.static import PrunedStaticLayer
from feathervlm.engine.cache.support import pruned_layer
from feathervlm.engine.gather import gather_slots
from feathervlm.engine.rows import RowTracker


class EarlierLayers:
    """Trims layers of one cache to the present rows.

    Args:
        cache: The cache of the forward.
        rows: The rows that are present.
        past: Number of cached positions of earlier turns, whose slots all stay.
        hook_status: Status that the trimmed layers depend on.
    """

    def __init__(self, cache: Cache, rows: RowTracker, past: int, hook_status: HookStatus) -> None:
        self.cache, self.rows, self.past, self.hook_status = cache, rows, past, hook_status
        self.device, self.read = rows.positions.device, rows.read
        self.memo: dict[Hashable, tuple[Tensor, SlotMap]] = {}
        positions, valid = self.read.positions, self.read.valid
        real = torch.ones_like(positions, dtype=torch.bool) if valid is None else valid
        stays = torch.ones(rows.batch, past + rows.sequence, dtype=torch.bool, device=self.device)
        stays[:, past:] = False
        self.stays = stays.scatter(1, positions + past, real)  # for every original position

    def trim(self, index: int, stored: int, group: Hashable) -> None:
        """Keep in a layer the slots of earlier turns and of the present rows.

        Args:
            index: Index of the layer.
            stored: Number of rows of this forward that the layer has stored.
            group: Key that is the same for layers whose slots stand for the same positions.
        """
        current: Any = self.cache.layers[index]
        if isinstance(current, StaticLayer):
            self.cache.layers[index] = self._smaller(current, stored, group)
            return
        layer: Any = pruned_layer(self.cache, index, self.hook_status, 0, size_known=True)
        if group not in self.memo:
            moved = layer.is_sliding and layer.get_seq_length() >= layer.sliding_window
            self.memo[group] = self._order(layer.columns(0, self.device), stored, layer.slot_map, moved)
        layer.keep(*self.memo[group])

    def _smaller(self, layer: Any, stored: int, group: Hashable) -> PrunedStaticLayer:
        """Return a static layer with room for the present rows, for one that was empty before this forward."""
        before = layer.slot_map if isinstance(layer, PrunedStaticLayer) else None
        capacity = layer.max_cache_len if before is None else layer.logical_capacity
        if group not in self.memo:
            every = torch.arange(stored, device=self.device)[None], None
            columns = every if before is None else (before.index, before.valid)
            self.memo[group] = self._order(columns, stored, before, window_moved=False)
        order, slot_map = self.memo[group]
        smaller = PrunedStaticLayer(self.hook_status, capacity, self.rows.dropped, self.rows.size_known)
        smaller.pending = slot_map
        smaller.update(gather_slots(layer.keys, order), gather_slots(layer.values, order))
        smaller.columns(0, self.device)  # makes its column map here, outside a compiled graph
        return smaller

    def _order(
        self, columns: tuple[Tensor, Tensor | None], stored: int, before: SlotMap | None, window_moved: bool
    ) -> tuple[Tensor, SlotMap]:
        """Return the slots to keep, long (batch, n), and the positions that they stand for.

        Args:
            columns: Position and validity of every slot.
            stored: Number of rows of this forward that the layer has stored.
            before: The layer's map before, if some of its tokens were dropped already.
            window_moved: Whether a sliding window may have dropped some of the rows.
        """
        positions, valid = columns
        positions = positions.expand(self.rows.batch, -1)
        keep = self.stays.gather(1, positions)
        if valid is not None:
            keep = keep & valid
        slots = positions.shape[1]
        most = min(slots - min(stored, slots) + self.read.positions.shape[1], slots)
        # As in a stage, shorter samples are filled on the left, with slots that stay masked.
        order = torch.sort(keep.to(torch.uint8), dim=1, stable=True).indices[:, slots - most :]
        exact = self.read.valid is None and valid is None and not window_moved
        logical = self.past + self.rows.sequence
        shift = None if before is None else before.shift
        return order, SlotMap(
            positions.gather(1, order), None if exact else keep.gather(1, order), logical, shift, left=True
        )
