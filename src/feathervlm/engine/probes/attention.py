"""Attention from the token that asks, or from words, to every visual token."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from feathervlm.core.criteria.attention import raters
from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import Attention, Features, HeadAttention, IsText, RaterAttention, Text
from feathervlm.engine.gather import gather_rows, gather_tree, tree_to
from feathervlm.engine.masks import pruned_mask
from feathervlm.engine.probes.base import Tokens
from feathervlm.engine.probes.query_key import QueryKeyProbe, QueryKeyRecorder
from feathervlm.engine.probes.registry import measures
from feathervlm.engine.rotary import rotation

BLOCK = 2**24
"""Number of logits computed at a time."""

A = TypeVar("A", bound=Attention)


class WeightsProbe(QueryKeyProbe[A]):
    """Base of the probes of attention weights."""

    @classmethod
    def check_later_turn(cls, signal: A) -> None:
        if signal.over == "all":
            raise Unprunable("over='all' needs the keys of earlier turns, which are cached rotated; use over='visual'.")

    def _mask(self) -> Any:
        if self.signal.over != "all":
            return None
        rows, (hidden, arguments) = self.forward.rows, self.forward.stage_inputs
        mask, attention = arguments.get("attention_mask"), self.forward.decoder.attention  # for the unpruned sequence
        place = rows.positions
        return pruned_mask(mask, place, place, place, rows.valid, 0, attention, hidden.dtype)

    def states(self, recorder: QueryKeyRecorder) -> tuple[Tensor, Tensor]:
        """Return queries (batch, heads, queries, dim) and keys (batch, kv heads, sequence, dim) as float32."""
        query, keys = recorder.found(recorder.query), recorder.found(recorder.keys)
        query_tables = gather_tree(recorder.tables, recorder.seen.query) if self.signal.rope else None
        query = self.compared("query", query, query_tables)
        return query.float(), self.compared("key", keys, recorder.tables).float()

    def weights(self, recorder: QueryKeyRecorder, query: Tensor, keys: Tensor, index: Tensor) -> Tensor:
        """Return attention to visual tokens of shape (batch, heads, n, visual).

        Args:
            recorder: The recorder of the layer.
            query: Queries of shape (batch, heads, n, dim).
            keys: Keys of shape (batch, kv heads, sequence, dim).
            index: Rows of the queries, long (batch, n).
        """
        view, present = recorder.seen, self.forward.present.to(keys.device)
        batch, kv_heads, sequence, dim = keys.shape
        logits = query.reshape(batch, kv_heads, -1, dim) @ keys.transpose(-1, -2)  # heads of a group side by side
        logits = logits.reshape(batch, recorder.heads, index.shape[1], sequence) * self._scaling(recorder)
        visual = view.visual[:, None, None].expand(-1, *logits.shape[1:3], -1)
        asked = view.positions.gather(1, index)
        if self.signal.over == "visual":
            seen = present[:, None] & (view.positions.gather(1, view.visual)[:, None] <= asked[..., None])
            weights = logits.gather(-1, visual).masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        else:
            allowed = _allowed(recorder, index, asked)[:, None]
            weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1).gather(-1, visual)
        # A sample without visual tokens has an empty softmax, and so has padding that asks.
        return weights.nan_to_num(0)

    def _scaling(self, recorder: QueryKeyRecorder) -> float:
        module = recorder.decoder.attention_module(recorder.layer)
        return float(getattr(module, "scaling", recorder.dim**-0.5))


@measures(Attention)
class AttentionProbe(WeightsProbe[Attention]):
    """Measures attention from the token that asks, the mean over heads."""

    def read(self) -> Tensor:
        recorder = self.recorder()
        query, keys = self.states(recorder)
        return self.weights(recorder, query, keys, recorder.seen.query)[:, :, 0].mean(1)


@measures(HeadAttention)
class HeadAttentionProbe(WeightsProbe[HeadAttention]):
    """Measures attention from the token that asks, head by head."""

    def read(self) -> Tensor:
        recorder = self.recorder()
        query, keys = self.states(recorder)
        return self.weights(recorder, query, keys, recorder.seen.query)[:, :, 0].transpose(1, 2)


@measures(RaterAttention)
class RaterAttentionProbe(WeightsProbe[RaterAttention]):
    """Measures attention from the words that images are about, the mean over these and over heads.

    The logits of at most `BLOCK` pairs are in memory at a time; where no word asks, the result is 0.
    """

    asking: Tokens | None = "text"

    def read(self) -> Tensor:
        features = Features("projected")
        visual, words = (self.forward.read(signal, self.at) for signal in (features, Text(features)))
        exists = self.forward.text.exists(IsText(self.signal.text))
        asks = raters(visual, self.forward.turns.layout.geometry().exists, words, exists)
        recorder = self.recorder()
        query, keys = self.states(recorder)
        asks, present = asks.to(keys.device), self.forward.present.to(keys.device)
        total = query.new_zeros(*query.shape[:2], present.shape[1])
        step = max(1, BLOCK // (query.shape[:2].numel() * keys.shape[2]))
        for start in range(0, query.shape[2], step):
            block = slice(start, start + step)
            index = recorder.seen.query[:, block]
            weights = self.weights(recorder, query[:, :, block], keys, index)
            if self.signal.min_decay is not None:
                weights = weights / self._decay(recorder, index).clamp(min=self.signal.min_decay)[:, None]
            total = total + (weights * asks[:, None, block, None]).sum(2)
        by_head = total / asks.sum(1).clamp(min=1)[:, None, None]
        mass = (by_head * present[:, None]).sum(-1)
        count = max(int(recorder.heads * self.signal.heads), 1)
        best = torch.sort(mass, dim=1, descending=True, stable=True).indices[:, :count].sort(1).values
        return gather_rows(by_head, best, -2).mean(1)

    def _decay(self, recorder: QueryKeyRecorder, index: Tensor) -> Tensor:
        """Return what rotation alone leaves of a product between queries and visual tokens: (batch, n, visual).

        That is the cosine between vectors of ones after rotation, 1 at the same place: the mean of
        cos(distance * frequency).

        Args:
            recorder: The recorder of the layer.
            index: Rows of the queries, long (batch, n).
        """
        rotate, view = rotation(recorder.decoder, self.forward.family.rotary, recorder.layer), recorder.seen
        ones = torch.ones(*view.positions.shape, recorder.dim, device=view.positions.device)[:, None]
        rotated = torch.nn.functional.normalize(
            rotate(ones, tree_to(recorder.tables, ones.device))[:, 0].float(), dim=-1
        )
        return gather_rows(rotated, index, -2) @ gather_rows(rotated, view.visual, -2).transpose(1, 2)


def _allowed(recorder: QueryKeyRecorder, index: Tensor, asked: Tensor) -> Tensor:
    """Return the keys that queries may see, bool (batch, n, sequence).

    Args:
        recorder: The recorder of the layer.
        index: Rows of the queries, long (batch, n).
        asked: Positions of the queries, long (batch, n).
    """
    view = recorder.seen
    allowed = view.positions[:, None] <= asked[..., None]
    if view.valid is not None:
        allowed = allowed & view.valid[:, None]
    if isinstance(recorder.mask, Tensor) and recorder.mask.dim() == 4:
        mask = view.mask_of(recorder.mask[:, 0, :, : view.length], index).to(allowed.device)
        allowed = allowed & (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)
    return allowed
