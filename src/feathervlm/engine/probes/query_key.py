"""Queries and keys that a decoder layer computes anyway.

`QueryKeyRecorder` hooks a layer's own projections (after its q/k norms, before its rotation), so a score costs no
second projection and never needs eager attention. `QueryKeyProbe` is the base of the signals made from them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import LayerSignal
from feathervlm.engine.decoder import DecoderView, fused_projection
from feathervlm.engine.family import Family
from feathervlm.engine.gather import gather_rows, tree_to
from feathervlm.engine.probes.base import LayerRecorder, Probe, Tokens
from feathervlm.engine.rotary import rotation
from feathervlm.engine.row_view import RowView

L = TypeVar("L", bound=LayerSignal)


class QueryKeyRecorder(LayerRecorder):
    """Records the queries of the rows that ask and all keys of a layer while it runs."""

    def __init__(self, decoder: DecoderView, layer: int, view: Callable[[], RowView]) -> None:
        super().__init__(decoder, layer, view)
        self.heads, self.kv_heads, self.dim = decoder.head_counts(layer)
        self.query: Tensor | None = None  # (batch, heads, queries, dim)
        self.keys: Tensor | None = None  # (batch, kv heads, sequence, dim)
        self.tables: Any = None
        self.mask: Any = None

    def attach(self) -> list[RemovableHandle]:
        module = self.decoder.attention_module(self.layer)
        handles = [self.decoder.layers[self.layer].register_forward_pre_hook(self._enter, with_kwargs=True)]
        fused = fused_projection(module)
        if fused is not None:
            return [*handles, fused.register_forward_hook(self._record_fused)]
        query, key = (_projection(module, name) for name in "qk")
        if query is None or key is None:
            raise Unprunable(
                f"Layer {self.layer} of {type(self.decoder.model).__name__} has none of q_norm/k_norm, "
                "q_layernorm/k_layernorm, q_proj/k_proj, qkv_proj, Wqkv to read attention scores from."
            )
        record_query = query.register_forward_hook(lambda module, args, output: self._record_query(output))
        record_keys = key.register_forward_hook(lambda module, args, output: self._record_keys(output))
        return [*handles, record_query, record_keys]

    def project(self, hidden: Tensor, tables: Any, mask: Any) -> None:
        """Project states that the layer has not run on yet, which costs a second projection.

        Args:
            hidden: States that enter the layer, of shape (batch, rows, dim).
            tables: Position tables for these rows.
            mask: Attention mask for these rows.
        """
        self.recorded_view, self.mask = self.view(), mask
        self.tables, hidden = self.seen.every_row(tables), self.seen.every_row(hidden)
        module = self.decoder.attention_module(self.layer)
        normed = self.decoder.input_norm(self.layer)(hidden)
        fused = fused_projection(module)
        if fused is not None:
            queries, keys = self._parts(fused(normed))
            self._keep_query(gather_rows(queries, self.seen.query, -2))
            self._keep_keys(keys)
            return
        asking = gather_rows(normed, self.seen.query, -2)
        parts = ("q", asking, self.heads, self._keep_query), ("k", normed, self.kv_heads, self._keep_keys)
        for name, states, heads, keep in parts:
            output = getattr(module, f"{name}_proj")(states)
            if output.shape[-1] == 2 * heads * self.dim:  # each head's query is followed by a gate
                output = output.unflatten(-1, (heads, 2 * self.dim))[..., : self.dim].flatten(-2)
            norm = getattr(module, f"{name}_norm", None) or getattr(module, f"{name}_layernorm", None)
            if norm is not None:
                by_head = norm.weight.shape[-1] == self.dim
                output = norm(output.unflatten(-1, (heads, self.dim)) if by_head else output)
            keep(output)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.recorded_view, apart = self.view(), self.view().apart
        tables, self.mask = kwargs.get("position_embeddings"), kwargs.get("attention_mask")
        self.tables = self.seen.every_row(tables if apart is None else self.seen.read_tables)
        if apart is not None and isinstance(self.mask, Tensor) and self.mask.dim() == 4:
            own = self.mask[:, 0]
            self.mask = apart.join(own.new_zeros(len(own), apart.rows.positions.shape[1], own.shape[2]), own)[:, None]

    def _parts(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries and keys of a fused projection."""
        queries, keys = self.heads * self.dim, self.kv_heads * self.dim
        return fused[..., :queries], fused[..., queries : queries + keys]

    def _record_fused(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        queries, keys = self._parts(output)
        self._record_query(queries)
        self._record_keys(keys)

    def _record_query(self, output: Tensor) -> None:
        view = self.view()
        if view.making_apart or self.recorded_view is None:  # a check after the forward finds a layer without its hooks
            return
        output = self.by_row(output, self.heads, view.given)
        if view.apart is not None:
            rows = view.apart.rows.positions.shape[1]
            output = view.apart.join(output.new_zeros(len(output), rows, output.shape[2]), output)
        self._keep_query(self.seen.take(output, self.seen.query))

    def _record_keys(self, output: Tensor) -> None:
        view = self.view()
        if self.recorded_view is None and not view.making_apart:
            return
        keys = self.of_all("keys", output, self.kv_heads, view)
        if keys is not None:
            self._keep_keys(self.seen.every_row(keys))

    def _keep_query(self, states: Tensor) -> None:
        self.query = self._by_head(states, self.heads)

    def _keep_keys(self, states: Tensor) -> None:
        self.recorded_view = self.seen.to(states.device)
        self.keys = self._by_head(states, self.kv_heads)

    def _by_head(self, states: Tensor, heads: int) -> Tensor:
        """Return (turns, heads, rows, dim) for (turns, rows, heads * dim) or (turns, rows, heads, dim)."""
        return states.reshape(*states.shape[:2], heads, self.dim).transpose(1, 2)


class LayerSignalProbe(Probe[L]):
    """Base of the probes of signals from the projections of one decoder layer."""

    @classmethod
    def check(cls, signal: L, decoder: DecoderView, family: Family, at: int) -> None:
        layer = decoder.scoring_layer(at - 1)[0] if signal.layer == "K-1" else at
        decoder.head_counts(layer)
        if signal.layer == "K":
            decoder.input_norm(layer)
        if signal.rope:
            rotation(decoder, family.rotary, layer)

    @property
    def layer(self) -> int:
        """Index of the layer that is measured."""
        return self.forward.decoder.scoring_layer(self.at - 1)[0] if self.signal.layer == "K-1" else self.at

    @property
    def note(self) -> str | None:
        return self.forward.decoder.scoring_layer(self.at - 1)[1] if self.signal.layer == "K-1" else None


class QueryKeyProbe(LayerSignalProbe[L]):
    """Base of the probes of signals from the queries and keys of one decoder layer."""

    asking: Tokens | None = None
    """The tokens whose queries are compared; None for the token that asks."""

    def attach(self) -> list[RemovableHandle]:
        return self.forward.attach(self._key, self._new_recorder) if self.signal.layer == "K-1" else []

    @property
    def _key(self) -> tuple[str, int, Tokens | None]:
        return "query and key", self.layer, self.asking

    def _new_recorder(self) -> QueryKeyRecorder:
        return QueryKeyRecorder(self.forward.decoder, self.layer, self._view)

    def _view(self) -> RowView:
        view = self.forward.rows.view()
        return view if self.asking is None else replace(view, query=self.forward.token_rows(self.asking, view))

    def recorder(self) -> QueryKeyRecorder:
        """Return the recorder of the layer that has run, or a projection of the layer that is about to run."""
        if self.signal.layer == "K-1":
            return self.forward.recorders[self._key]  # type: ignore[no-any-return]  # stored under this key only
        hidden, arguments = self.forward.stage_inputs
        recorder = self._new_recorder()
        recorder.project(hidden, self.forward.rows.tables(arguments.get("position_embeddings")), self._mask())
        return recorder

    def _mask(self) -> Any:
        """Return the attention mask that the scores of a layer about to run need."""
        return None

    def compared(self, name: Any, states: Tensor, tables: Any) -> Tensor:
        """Return queries or keys as the signal compares them: rotated where it asks for that, and normed.

        Args:
            name: "query" or "key".
            states: States of shape (batch, heads, rows, dim).
            tables: Position tables for these rows.
        """
        rules, rotated = self.forward.family.rotary, self.signal.rope
        if rotated:
            states = rotation(self.forward.decoder, rules, self.layer)(states, tree_to(tables, states.device))
            rotated = rules.rotates(self.layer)
        return rules.normalize_after_rotary(self.layer, name, states, rotated)


def _projection(module: nn.Module, name: str) -> nn.Module | None:
    for suffix in ("norm", "layernorm", "proj"):
        part = getattr(module, f"{name}_{suffix}", None)
        if part is not None:
            return part
    return None
