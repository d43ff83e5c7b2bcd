"""Attention scores of one query row, and keys, from q and k that a layer computes anyway.

`QueryKeyTap` listens to a layer's own projections (after its q/k norms, before its rotation), so a score costs no
second projection and never asks the model for eager attention.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import Attention, Keys
from feathervlm.engine.anatomy import Anatomy, rows, tree_rows
from feathervlm.engine.rotation import rotation


@dataclass(eq=False)
class Row:
    """Where things are in the tensor that a scoring layer sees.

    Attributes:
        query: long (batch,), row of the query.
        slots: long (batch, visual), row of every visual token; anything where it is gone.
        positions: long (batch, sequence), original position of every row.
        valid: bool (batch, sequence), False on padding and fillers; None if all are real.
    """

    query: Tensor
    slots: Tensor
    positions: Tensor
    valid: Tensor | None


class QueryKeyTap:
    """Captures q of one row and all k of a layer while it runs."""

    def __init__(self, anatomy: Anatomy, layer: int, where: Callable[[], Row]) -> None:
        self.anatomy, self.layer, self.where = anatomy, layer, where
        self.heads, self.kv_heads, self.dim = anatomy.head_counts(layer)
        self.row: Row | None = None  # as the layer saw it
        self.query: Tensor | None = None  # (batch, heads, dim)
        self.keys: Tensor | None = None  # (batch, kv heads, sequence, dim)
        self.tables: Any = None
        self.mask: Any = None

    @property
    def seen(self) -> Row:
        """Where things were when the layer ran."""
        assert self.row is not None
        return self.row

    def attach(self) -> list[RemovableHandle]:
        """Start listening.

        Raises:
            Unprunable: if the layer has no projections under a known name.
        """
        module = self.anatomy.attention_module(self.layer)
        handles = [self.anatomy.layers[self.layer].register_forward_pre_hook(self._enter, with_kwargs=True)]
        if hasattr(module, "qkv_proj"):
            return [*handles, module.qkv_proj.register_forward_hook(self._see_fused)]
        query, key = (_projection(module, name) for name in "qk")
        if query is None or key is None:
            raise Unprunable(
                f"Layer {self.layer} of {type(self.anatomy.model).__name__} has none of q_norm/k_norm, "
                "q_layernorm/k_layernorm, q_proj/k_proj, qkv_proj to read attention scores from."
            )
        see_query = query.register_forward_hook(lambda m, a, out: self._see_query(out))
        see_key = key.register_forward_hook(lambda m, a, out: self._see_keys(out))
        return [*handles, see_query, see_key]

    def project(self, hidden: Tensor, tables: Any, mask: Any) -> None:
        """Fill the tap from a hidden state that the layer has not run on yet: a projection of its own."""
        self.row, self.tables, self.mask = self.where(), tables, mask
        module = self.anatomy.attention_module(self.layer)
        normed = self.anatomy.input_norm(self.layer)(hidden)
        if hasattr(module, "qkv_proj"):
            self._see_fused(module, (), module.qkv_proj(normed))
            return
        last = rows(normed, self.row.query[:, None], -2)
        for name, states, heads, see in (("q", last, self.heads, self._keep_query), ("k", normed, self.kv_heads, None)):
            out = getattr(module, f"{name}_proj")(states)
            if out.shape[-1] == 2 * heads * self.dim:  # each head's query comes with a gate behind it
                out = out.unflatten(-1, (heads, 2 * self.dim))[..., : self.dim].flatten(-2)
            norm = getattr(module, f"{name}_norm", None) or getattr(module, f"{name}_layernorm", None)
            if norm is not None:
                by_head = norm.weight.shape[-1] == self.dim
                out = norm(out.unflatten(-1, (heads, self.dim)) if by_head else out)
            (see or self._see_keys)(out)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.row = self.where()
        self.tables, self.mask = kwargs.get("position_embeddings"), kwargs.get("attention_mask")

    def _see_fused(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        queries, keys = self.heads * self.dim, self.kv_heads * self.dim
        self._see_query(out[..., :queries])
        self._see_keys(out[..., queries : queries + keys])

    def _see_query(self, out: Tensor) -> None:
        assert self.row is not None
        states = self._by_head(out.detach(), self.heads)  # (batch, heads, sequence, dim)
        self._keep_query(states.gather(2, self.row.query[:, None, None, None].expand(*states.shape[:2], 1, self.dim)))

    def _keep_query(self, states: Tensor) -> None:
        self.query = states.reshape(states.shape[0], self.heads, self.dim)

    def _see_keys(self, out: Tensor) -> None:
        self.keys = self._by_head(out.detach(), self.kv_heads)

    def _by_head(self, out: Tensor, heads: int) -> Tensor:
        """(batch, heads, sequence, dim) from any layout that models use."""
        assert self.row is not None
        sequence = self.row.positions.shape[1]
        if out.dim() == 3:
            return out.unflatten(-1, (heads, self.dim)).transpose(1, 2)
        if heads == sequence:
            raise Unprunable(f"A prompt of {sequence} tokens for {heads} heads hides which dimension is which.")
        return out if out.shape[1] == heads else out.transpose(1, 2)

    def scores(self, signal: Attention, present: Tensor) -> Tensor:
        """Attention from the query to every visual token, mean over heads: (batch, visual) float32.

        Args:
            signal: rotated or not, and over which keys.
            present: bool (batch, visual), the tokens to compare.
        """
        assert self.row is not None
        assert self.query is not None
        assert self.keys is not None
        query, keys, row = self.query[:, :, None], self.keys, self.row
        if signal.rope:
            rotate = rotation(self.anatomy, self.layer)
            query = rotate(query, tree_rows(self.tables, row.query[:, None]))
            keys = rotate(keys, self.tables)
        query, keys = self._normed_behind("query", query), self._normed_behind("key", keys)
        batch, kv_heads, sequence, dim = keys.shape
        grouped = query.float().reshape(batch, kv_heads, -1, dim)
        logits = grouped @ keys.float().transpose(-1, -2)  # (batch, kv heads, group, sequence)
        logits = logits.reshape(batch, self.heads, sequence) * self._scaling()
        slots = row.slots[:, None].expand(-1, self.heads, -1)
        asked = row.positions.gather(1, row.query[:, None])
        if signal.over == "visual":
            seen = present & (row.positions.gather(1, row.slots) <= asked)
            weights = logits.gather(-1, slots).masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        else:
            weights = logits.masked_fill(~self._allowed(asked)[:, None], float("-inf")).softmax(-1).gather(-1, slots)
        # A sample without visual tokens has an empty softmax.
        return weights.nan_to_num(0).mean(1)

    def key_vectors(self, signal: Keys, index: Tensor) -> Tensor:
        """Keys of the rows `index` (batch, n), all heads side by side: (batch, n, kv heads * dim).

        Args:
            signal: rotated or not.
            index: rows of the tensor that the layer saw.
        """
        assert self.keys is not None
        keys = rotation(self.anatomy, self.layer)(self.keys, self.tables) if signal.rope else self.keys
        return rows(self._normed_behind("key", keys).transpose(1, 2).flatten(2), index, -2)

    def _normed_behind(self, name: str, states: Tensor) -> Tensor:
        """By the norm that HunYuan has behind its rotation."""
        norm = getattr(self.anatomy.attention_module(self.layer), f"{name}_layernorm", None)
        return states if norm is None else norm(states)  # type: ignore[no-any-return]

    def _scaling(self) -> float:
        return float(getattr(self.anatomy.attention_module(self.layer), "scaling", self.dim**-0.5))

    def _allowed(self, asked: Tensor) -> Tensor:
        """The keys that the query may see: bool (batch, sequence)."""
        assert self.row is not None
        allowed = self.row.positions <= asked
        if self.row.valid is not None:
            allowed = allowed & self.row.valid
        if isinstance(self.mask, Tensor) and self.mask.dim() == 4:
            mask = self.mask[:, 0, :, : allowed.shape[1]].expand(allowed.shape[0], -1, -1)
            mask = rows(mask, self.row.query[:, None], -2)[:, 0]
            allowed = allowed & (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)
        return allowed


def _projection(module: nn.Module, name: str) -> nn.Module | None:
    for suffix in ("norm", "layernorm", "proj"):
        found = getattr(module, f"{name}_{suffix}", None)
        if found is not None:
            return found
    return None
