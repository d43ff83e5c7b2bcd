"""Attention scores of a few query rows, and keys, from q and k that a layer computes anyway.

`QueryKeyProbe` listens to a layer's own projections (after its q/k norms, before its rotation), so a score costs no
second projection and never asks the model for eager attention.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import Attention, Keys, RaterAttention
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.gather import rows, tree_rows
from feathervlm.engine.probes.base import Probe, RowView
from feathervlm.engine.rotary import rotation

BLOCK = 2**24
"""Logits made at a time."""


class QueryKeyProbe(Probe):
    """Captures q of the rows that ask and all k of a layer while it runs."""

    def __init__(self, decoder: DecoderView, layer: int, where: Callable[[], RowView]) -> None:
        super().__init__(decoder, layer, where)
        self.heads, self.kv_heads, self.dim = decoder.head_counts(layer)
        self.query: Tensor | None = None  # (batch, heads, queries, dim)
        self.keys: Tensor | None = None  # (batch, kv heads, sequence, dim)
        self.tables: Any = None
        self.mask: Any = None

    def attach(self) -> list[RemovableHandle]:
        """Start listening.

        Raises:
            Unprunable: if the layer has no projections under a known name.
        """
        module = self.decoder.attention_module(self.layer)
        handles = [self.decoder.layers[self.layer].register_forward_pre_hook(self._enter, with_kwargs=True)]
        if hasattr(module, "qkv_proj"):
            return [*handles, module.qkv_proj.register_forward_hook(self._see_fused)]
        query, key = (_projection(module, name) for name in "qk")
        if query is None or key is None:
            raise Unprunable(
                f"Layer {self.layer} of {type(self.decoder.model).__name__} has none of q_norm/k_norm, "
                "q_layernorm/k_layernorm, q_proj/k_proj, qkv_proj to read attention scores from."
            )
        see_query = query.register_forward_hook(lambda m, a, out: self._see_query(out))
        see_key = key.register_forward_hook(lambda m, a, out: self._see_keys(out))
        return [*handles, see_query, see_key]

    def project(self, hidden: Tensor, tables: Any, mask: Any) -> None:
        """Fill the tap from a hidden state that the layer has not run on yet: a projection of its own."""
        self.row, self.tables, self.mask = self.where(), tables, mask
        module = self.decoder.attention_module(self.layer)
        normed = self.decoder.input_norm(self.layer)(hidden)
        if hasattr(module, "qkv_proj"):
            self._see_fused(module, (), module.qkv_proj(normed))
            return
        asking = rows(normed, self.row.query, -2)
        parts = ("q", asking, self.heads, self._keep_query), ("k", normed, self.kv_heads, self._see_keys)
        for name, states, heads, see in parts:
            out = getattr(module, f"{name}_proj")(states)
            if out.shape[-1] == 2 * heads * self.dim:  # each head's query comes with a gate behind it
                out = out.unflatten(-1, (heads, 2 * self.dim))[..., : self.dim].flatten(-2)
            norm = getattr(module, f"{name}_norm", None) or getattr(module, f"{name}_layernorm", None)
            if norm is not None:
                by_head = norm.weight.shape[-1] == self.dim
                out = norm(out.unflatten(-1, (heads, self.dim)) if by_head else out)
            see(out)

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
        self.query = rows(states, self.row.query[:, None], -2)

    def _keep_query(self, states: Tensor) -> None:
        self.query = states.reshape(*states.shape[:2], self.heads, self.dim).transpose(1, 2)

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
        query, keys = self._compared(signal.rope)
        return self._weights(signal, query, keys, self.seen.query, present)[:, :, 0].mean(1)

    def rated(self, signal: RaterAttention, rates: Tensor, present: Tensor) -> Tensor:
        """Attention from some of the queries, mean over these and over heads: (batch, visual) float32.

        No more than a block of rows is there at a time; zeros where nobody asks.

        Args:
            signal: rotated or not, over which keys, of which heads, and whether RoPE's own part is taken out.
            rates: bool (batch, queries), those that count.
            present: bool (batch, visual), the tokens to compare.
        """
        query, keys = self._compared(signal.rope)
        total = query.new_zeros(*query.shape[:2], present.shape[1])
        step = max(1, BLOCK // (query.shape[:2].numel() * keys.shape[2]))
        for start in range(0, query.shape[2], step):
            some = slice(start, start + step)
            index = self.seen.query[:, some]
            weights = self._weights(signal, query[:, :, some], keys, index, present)
            if signal.min_decay is not None:
                weights = weights / self._decay(index).clamp(min=signal.min_decay)[:, None]
            total = total + (weights * rates[:, None, some, None]).sum(2)
        by_head = total / rates.sum(1).clamp(min=1)[:, None, None]
        mass = (by_head * present[:, None]).sum(-1)
        count = max(int(self.heads * signal.heads), 1)
        best = torch.sort(mass, dim=1, descending=True, stable=True).indices[:, :count].sort(1).values
        return rows(by_head, best, -2).mean(1)

    def _compared(self, rope: bool) -> tuple[Tensor, Tensor]:
        """Queries (batch, heads, queries, dim) and keys (batch, kv heads, sequence, dim) as they are compared."""
        assert self.query is not None
        assert self.keys is not None
        query, keys = self.query, self.keys
        if rope:
            rotate = rotation(self.decoder, self.layer)
            query, keys = rotate(query, tree_rows(self.tables, self.seen.query)), rotate(keys, self.tables)
        return self._normed_behind("query", query).float(), self._normed_behind("key", keys).float()

    def _weights(self, signal: Attention, query: Tensor, keys: Tensor, index: Tensor, present: Tensor) -> Tensor:
        """Attention of queries, in the rows `index` (batch, n), to visual tokens: (batch, heads, n, visual)."""
        row = self.seen
        batch, kv_heads, sequence, dim = keys.shape
        logits = query.reshape(batch, kv_heads, -1, dim) @ keys.transpose(-1, -2)  # heads of a group side by side
        logits = logits.reshape(batch, self.heads, index.shape[1], sequence) * self._scaling()
        slots = row.slots[:, None, None].expand(-1, *logits.shape[1:3], -1)
        asked = row.positions.gather(1, index)
        if signal.over == "visual":
            seen = present[:, None] & (row.positions.gather(1, row.slots)[:, None] <= asked[..., None])
            weights = logits.gather(-1, slots).masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        else:
            allowed = self._allowed(index, asked)[:, None]
            weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1).gather(-1, slots)
        # A sample without visual tokens has an empty softmax, and so has padding that asks.
        return weights.nan_to_num(0)

    def _decay(self, index: Tensor) -> Tensor:
        """What rotation leaves between queries in the rows `index` (batch, n) and visual tokens: (batch, n, visual).

        The cosine of vectors of ones after rotation, 1 at the same place: the mean of cos(distance * frequency).
        """
        rotate, row = rotation(self.decoder, self.layer), self.seen
        ones = torch.ones(*row.positions.shape, self.dim, device=row.positions.device)[:, None]
        turned = torch.nn.functional.normalize(rotate(ones, self.tables)[:, 0].float(), dim=-1)
        return rows(turned, index, -2) @ rows(turned, row.slots, -2).transpose(1, 2)

    def key_vectors(self, signal: Keys, index: Tensor) -> Tensor:
        """Keys of the rows `index` (batch, n), all heads side by side: (batch, n, kv heads * dim).

        Args:
            signal: rotated or not.
            index: rows of the tensor that the layer saw.
        """
        assert self.keys is not None
        keys = rotation(self.decoder, self.layer)(self.keys, self.tables) if signal.rope else self.keys
        return rows(self._normed_behind("key", keys).transpose(1, 2).flatten(2), index, -2)

    def _normed_behind(self, name: str, states: Tensor) -> Tensor:
        """By the norm that HunYuan has behind its rotation."""
        norm = getattr(self.decoder.attention_module(self.layer), f"{name}_layernorm", None)
        return states if norm is None else norm(states)  # type: ignore[no-any-return]  # a submodule by name

    def _scaling(self) -> float:
        return float(getattr(self.decoder.attention_module(self.layer), "scaling", self.dim**-0.5))

    def _allowed(self, index: Tensor, asked: Tensor) -> Tensor:
        """The keys that queries may see, in the rows `index` at positions `asked`: bool (batch, n, sequence)."""
        row = self.seen
        allowed = row.positions[:, None] <= asked[..., None]
        if row.valid is not None:
            allowed = allowed & row.valid[:, None]
        if isinstance(self.mask, Tensor) and self.mask.dim() == 4:
            mask = self.mask[:, 0, :, : allowed.shape[2]].expand(len(allowed), -1, -1)
            mask = rows(mask, index, -2)
            allowed = allowed & (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)
        return allowed


def _projection(module: nn.Module, name: str) -> nn.Module | None:
    for suffix in ("norm", "layernorm", "proj"):
        found = getattr(module, f"{name}_{suffix}", None)
        if found is not None:
            return found
    return None
