"""The arguments of a decoder layer for the present rows: mask, positions, and a pruned cache layer.

Tensors that layers of one kind share are made once per stage.
"""

from typing import Any

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable
from feathervlm.engine.cache.layer import HookStatus, SlotMap
from feathervlm.engine.cache.static import PrunedStaticLayer
from feathervlm.engine.cache.support import pruned_layer
from feathervlm.engine.decoder import FLASH, DecoderView, line_ids
from feathervlm.engine.family import Family
from feathervlm.engine.gather import gather_rows, gather_tree
from feathervlm.engine.masks import pruned_mask, state_mask
from feathervlm.engine.packing import CUMULATIVE, SAMPLE_NUMBERS
from feathervlm.engine.rows import RowTracker

KNOWN = ("attention_mask", "position_ids", "position_embeddings", "hidden_states", "labels", "shift_labels")
"""Names of arguments with a row per token that layers rewrite here or, as with labels for the loss, never read."""


class LayerArguments:
    """Rewrites the arguments of the layers after a stage.

    Args:
        decoder: View of the decoder.
        family: Family of the model, which names other arguments with a row per token.
        rows: The rows that are present.
        hook_status: Status that pruned cache layers depend on.

    Attributes:
        past_slots: For each type of layer of this stage that has run, the number of slots of earlier turns that it
            attends to, and the validity of all its slots, bool (batch, slots); empty if there are no earlier turns.
    """

    def __init__(self, decoder: DecoderView, family: Family, rows: RowTracker, hook_status: HookStatus) -> None:
        self.decoder, self.family, self.rows, self.hook_status = decoder, family, rows, hook_status
        self.memo: dict[tuple[Any, ...], Any] = {}
        self.past_slots: dict[str, tuple[int, Tensor | None]] = {}

    def next_stage(self) -> None:
        """Drop the tensors that were made for the rows before a stage."""
        self.memo.clear()
        self.past_slots = {}

    def rewrite(self, index: int, kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """Return the arguments of a layer for the present rows.

        Args:
            index: Index of the layer.
            kwargs: Its arguments for all rows.
            dtype: Type of the hidden states.

        Raises:
            Unprunable: If an argument that is not known has a row per token.
        """
        self._check_unknown(kwargs)
        kwargs = {**kwargs, "attention_mask": self._mask(index, kwargs, dtype)}
        unrotated = kwargs.get("position_embeddings") is None  # some layers of a kind may not rotate
        key = ("tables", self.decoder.rotary_types[index], unrotated)
        if key not in self.memo:
            self.memo[key] = self.rows.tables(kwargs.get("position_embeddings"))
        if self.rows.apart is not None:
            read = ("read", *key)
            if read not in self.memo:
                self.memo[read] = gather_tree(kwargs.get("position_embeddings"), self.rows.read.positions)
            self.rows.read_tables = self.memo[read]
        kwargs["position_embeddings"] = self.memo[key]
        ids = kwargs.get("position_ids")
        if self.rows.renumbered:
            line_ids(ids)  # which decoding will shift
        if isinstance(ids, Tensor):
            kwargs["position_ids"] = self._position_ids(ids)
        for name, value in kwargs.items():
            if name in (*self.family.row_arguments, *SAMPLE_NUMBERS) and isinstance(value, Tensor):
                kwargs[name] = gather_rows(value, self.rows.positions, -1)
            elif name.startswith(CUMULATIVE) and isinstance(value, Tensor):
                kwargs[name] = torch.searchsorted(self.rows.positions[0], value.to(self.rows.positions)).to(value)
        return kwargs

    def _position_ids(self, ids: Tensor) -> Tensor:
        if FLASH in self.decoder.attention:
            # Flash attention takes ids with gaps for packed sequences; the rotation is in the tables already.
            return self.rows.ranks().to(ids.device)
        return gather_rows(ids, self.rows.attending_table_rows, -1)

    def apart(self, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a layer for the rows whose keys and values are made apart.

        Args:
            index: Index of the layer.
            kwargs: Its arguments for all rows.
        """
        assert self.rows.apart is not None
        rows = self.rows.apart.rows.positions
        key = ("apart", self.decoder.rotary_types[index], kwargs.get("position_embeddings") is None)
        if key not in self.memo:
            self.memo[key] = gather_tree(kwargs.get("position_embeddings"), rows)
        kwargs = {name: value for name, value in kwargs.items() if not name.startswith(CUMULATIVE)}
        for name in ("position_ids", *self.family.row_arguments):
            if isinstance(kwargs.get(name), Tensor):
                kwargs[name] = gather_rows(kwargs[name], rows, -1)
        return {**kwargs, "attention_mask": None, "position_embeddings": self.memo[key]}

    def _check_unknown(self, kwargs: dict[str, Any]) -> None:
        known = {*KNOWN, *self.family.row_arguments, *SAMPLE_NUMBERS}
        for name, value in kwargs.items():
            if (
                name not in known
                and not name.startswith(CUMULATIVE)
                and isinstance(value, Tensor)
                and self.rows.sequence in value.shape
            ):
                raise Unprunable(
                    f"Decoder layers are given {name} of shape {tuple(value.shape)}: a sequence dimension "
                    "that the engine does not know how to prune."
                )

    def _mask(self, index: int, kwargs: dict[str, Any], dtype: torch.dtype) -> Any:
        mask, cache, rows = kwargs.get("attention_mask"), kwargs.get("past_key_values"), self.rows
        key = ("mask", self.decoder.layer_types[index])
        if not self.decoder.keeps_keys(index):
            if key not in self.memo:
                self.memo[key] = state_mask(mask, rows.positions, rows.valid)
            return self.memo[key]
        attending, read = rows.attending.positions, rows.read
        columns, valid, offset, past = read.positions, read.valid, 0, 0
        if cache is not None:
            layer = pruned_layer(cache, index, self.hook_status, rows.dropped, rows.size_known)
            if ("columns", *key) not in self.memo:
                self.memo["columns", *key] = self._columns(layer)
            columns, valid, slot_map, offset, past = self.memo["columns", *key]
            layer.pending = slot_map
            if isinstance(layer, PrunedStaticLayer):
                layer.column_map = columns, valid
        if key not in self.memo:
            if past:
                self.past_slots[key[1]] = columns.shape[1] - read.positions.shape[1], valid
            if (
                rows.apart is not None and valid is None
            ):  # fewer queries than keys: kernels must not guess who sees whom
                valid = torch.ones_like(columns, dtype=torch.bool)
            query, causal = attending + past, self.decoder.is_causal(index)
            self.memo[key] = pruned_mask(
                mask, attending, query, columns, valid, offset, self.decoder.attention, dtype, causal
            )
        return self.memo[key]

    def _columns(self, layer: Any) -> tuple[Tensor, Tensor | None, SlotMap, int, int]:
        """Return what a layer's slots stand for once the keys of this forward arrive.

        Returns:
            Position and validity of every slot, the map for these, the position of the first column of the model's own
            mask, and the number of cached positions of earlier turns.
        """
        read, device = self.rows.read, self.rows.positions.device
        past = int(layer.get_seq_length()) if layer.is_initialized else 0
        offset = layer.get_mask_sizes(self.rows.sequence)[1]
        index, valid = read.positions + past, read.valid
        if past:
            past_index, past_valid = layer.columns(0, device)
            past_index = past_index.expand(self.rows.batch, -1)
            if valid is not None or past_valid is not None:
                pair = [
                    mask if mask is not None else torch.ones_like(of, dtype=torch.bool)
                    for mask, of in ((past_valid, past_index), (valid, index))
                ]
                valid = torch.cat(pair, 1)
            index = torch.cat([past_index, index], 1)
        slot_map = SlotMap(index, valid, past + self.rows.sequence, self.rows.shift, left=not past)
        if isinstance(layer, PrunedStaticLayer):
            layer.pending = slot_map
            return (*layer.columns(0, device), slot_map, offset, past)
        return index, valid, slot_map, offset, past
