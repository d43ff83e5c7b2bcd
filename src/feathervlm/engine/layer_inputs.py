"""The arguments of a decoder layer, for the rows of a forward that are left: mask, positions, and a pruned cache layer.

What layers of one kind share is made once per stage. Knows neither how rows are chosen nor when they leave.
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
from feathervlm.engine.gather import rows
from feathervlm.engine.masks import pruned_mask, state_mask
from feathervlm.engine.rows import RowTracker


class LayerArguments:
    """Rewrites what the layers behind a stage are given.

    Args:
        decoder: view of the decoder.
        family: that knows which other arguments have a row per token.
        left: the rows that are left.
        attachment: what the pruned cache will depend on.

    Attributes:
        earlier: how many slots of earlier turns the layers of this stage attend to, and which of all their slots are
            valid, bool (batch, slots); None if there are none.
    """

    def __init__(self, decoder: DecoderView, family: Family, left: RowTracker, attachment: HookStatus) -> None:
        self.decoder, self.family, self.left, self.attachment = decoder, family, left, attachment
        self.memo: dict[tuple[Any, ...], Any] = {}
        self.earlier: tuple[int, Tensor | None] | None = None

    def next_stage(self) -> None:
        """Forget what was made for the rows before a stage."""
        self.memo.clear()
        self.earlier = None

    def rewrite(self, index: int, kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of layer `index` for the rows that are left.

        Args:
            index: of the layer.
            kwargs: its arguments for all rows.
            dtype: of the hidden states.

        Raises:
            Unprunable: if an argument has a row per token and nobody knows how to prune it.
        """
        self._check_unknown(kwargs)
        kwargs = {**kwargs, "attention_mask": self._mask(index, kwargs, dtype)}
        unrotated = kwargs.get("position_embeddings") is None  # some layers of a kind may not rotate
        key = ("tables", self.decoder.rotary_types[index], unrotated)
        if key not in self.memo:
            self.memo[key] = self.left.tables(kwargs.get("position_embeddings"))
        kwargs["position_embeddings"] = self.memo[key]
        ids = kwargs.get("position_ids")
        if self.left.renumbered:
            line_ids(ids)  # which decoding will shift
        if isinstance(ids, Tensor):
            kwargs["position_ids"] = self._position_ids(ids)
        for name in self.family.row_arguments:
            if isinstance(kwargs.get(name), Tensor):
                kwargs[name] = rows(kwargs[name], self.left.positions, -1)
        return kwargs

    def _position_ids(self, ids: Tensor) -> Tensor:
        if FLASH in self.decoder.attention:
            # Flash attention takes ids with gaps for packed sequences; the rotation is in the tables already.
            return torch.arange(self.left.positions.shape[1], device=ids.device)[None]
        return rows(ids, self.left.places, -1)

    def _check_unknown(self, kwargs: dict[str, Any]) -> None:
        known = {"attention_mask", "position_ids", "position_embeddings", "hidden_states", *self.family.row_arguments}
        for name, value in kwargs.items():
            if name not in known and isinstance(value, Tensor) and self.left.sequence in value.shape:
                raise Unprunable(
                    f"Decoder layers are given {name} of shape {tuple(value.shape)}: a sequence dimension "
                    "that the engine does not know how to prune."
                )

    def _mask(self, index: int, kwargs: dict[str, Any], dtype: torch.dtype) -> Any:
        mask, cache, left = kwargs.get("attention_mask"), kwargs.get("past_key_values"), self.left
        key = ("mask", self.decoder.layer_types[index])
        if not self.decoder.keeps_keys(index):
            if key not in self.memo:
                self.memo[key] = state_mask(mask, left.positions, left.valid)
            return self.memo[key]
        columns, valid, offset, past = left.positions, left.valid, 0, 0
        if cache is not None:
            layer = pruned_layer(cache, index, self.attachment, left.dropped, left.foreseen)
            if ("columns", *key) not in self.memo:
                self.memo["columns", *key] = self._columns(layer)
            columns, valid, prefix, offset, past = self.memo["columns", *key]
            layer.pending = prefix
            if isinstance(layer, PrunedStaticLayer):
                layer.map = columns, valid
        if key not in self.memo:
            self.earlier = (columns.shape[1] - left.positions.shape[1], valid) if past else None
            self.memo[key] = pruned_mask(
                mask, left.positions, left.positions + past, columns, valid, offset, self.decoder.attention, dtype
            )
        return self.memo[key]

    def _columns(self, layer: Any) -> tuple[Tensor, Tensor | None, SlotMap, int, int]:
        """What the layer's keys will stand for once this forward's arrive, and as seen by the model's own mask."""
        device = self.left.positions.device
        past = int(layer.get_seq_length()) if layer.is_initialized else 0
        offset = layer.get_mask_sizes(self.left.sequence)[1]
        index, valid = self.left.positions + past, self.left.valid
        if past:
            before, before_valid = layer.columns(0, device)
            before = before.expand(self.left.batch, -1)
            if valid is not None or before_valid is not None:
                pair = [
                    mask if mask is not None else torch.ones_like(of, dtype=torch.bool)
                    for mask, of in ((before_valid, before), (valid, index))
                ]
                valid = torch.cat(pair, 1)
            index = torch.cat([before, index], 1)
        prefix = SlotMap(index, valid, past + self.left.sequence, self.left.shift, left=not past)
        if isinstance(layer, PrunedStaticLayer):
            layer.pending = prefix
            return (*layer.columns(0, device), prefix, offset, past)
        return index, valid, prefix, offset, past
