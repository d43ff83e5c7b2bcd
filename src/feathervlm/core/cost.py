"""The cost of a prefill: exact counts for a model's own dimensions, and the two formulas of the paper.

A layer may treat tokens in different ways, of which each has its price: a token that runs is multiplied with every
matrix and asks all keys before it; a frozen one is multiplied with the matrices of keys and values only; one that skips
a half of the layer with those of the other half; one that waits or was dropped costs nothing.

Counts include the decoder layers only: no vision encoder, no embedding, no output head. A multiply-add is two
floating-point operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Others:
    """Tokens of one layer whose keys and values are read, and that do not run all of it.

    Attributes:
        count: Number of them.
        pairs: Number of pairs of a token that attends and one of these that it sees.
        skip: The half of the layer that they skip, "mlp" or "attention"; None if they skip both (frozen tokens).
    """

    count: int
    pairs: int = 0
    skip: str | None = None


@dataclass(frozen=True)
class LayerCost:
    """The dimensions of one decoder layer that determine its cost.

    Attributes:
        weights: Number of matrix weights that every token is multiplied with (for a mixture of experts: per routed
            token).
        attention_width: Query heads times head dimension.
        kv_width: Key plus value numbers stored per token.
        window: Number of tokens that a token attends to in a sliding window, itself included, or on each side of it if
            attention is not causal; None without a window.
        causal: Whether tokens attend to previous tokens only.
        kv_weights: Number of matrix weights of keys and values, which are among `weights`.
        mlp_weights: Number of matrix weights of the MLP, which are among `weights`.
    """

    weights: int
    attention_width: int
    kv_width: int
    window: int | None = None
    causal: bool = True
    kv_weights: int = 0
    mlp_weights: int = 0

    def flops(self, tokens: int, past: int = 0, others: Others | None = None) -> int:
        """Return the floating-point operations for `tokens` new tokens after `past` cached ones.

        Args:
            tokens: Number of tokens that run, of text and of images.
            past: Number of cached tokens.
            others: Tokens that are frozen, or skip a half of the layer.

        >>> layer = LayerCost(weights=100, attention_width=8, kv_width=4, kv_weights=20, mlp_weights=60)
        >>> layer.flops(2), layer.flops(2, others=Others(3, pairs=4))
        (496, 744)
        """
        attending, extra, saved = tokens, 0, 0
        if others is not None and others.skip == "mlp":
            attending, saved = tokens + others.count, others.count * self.mlp_weights
        elif others is not None:
            extra = others.pairs
            saved = others.count * (self.weights - self.kv_weights - (self.mlp_weights if others.skip else 0))
        pairs = (
            self._pairs(past + attending) - self._pairs(past) if self.causal else self._pairs_both_ways(attending, past)
        )
        rows = tokens + (others.count if others is not None else 0)
        return 2 * (self.weights * rows - saved) + 2 * 2 * self.attention_width * (pairs + extra)

    def kv_numbers(self, tokens: int) -> int:
        """Return the count of numbers that the cache of the layer holds after `tokens` tokens.

        >>> layer = LayerCost(weights=100, attention_width=8, kv_width=4, window=3)
        >>> layer.kv_numbers(1), layer.kv_numbers(9)
        (4, 8)
        """
        return self.kv_width * (tokens if self.window is None else min(tokens, self.window - 1))

    def _pairs(self, tokens: int) -> int:
        """Return the number of pairs of a query and a key before it in a prompt."""
        beyond = 0 if self.window is None else max(tokens - self.window, 0)
        start = tokens - beyond  # each of these queries attends to all tokens up to itself
        return start * (start + 1) // 2 + beyond * start

    def _pairs_both_ways(self, tokens: int, past: int) -> int:
        return tokens * (past + tokens if self.window is None else min(past + tokens, 2 * self.window + 1))


def decoder_layer(
    hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int, gated: bool = True
) -> LayerCost:
    """Return the cost of a standard dense layer: grouped-query attention and an MLP of two (gated: three) matrices."""
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    mlp = (3 if gated else 2) * hidden * intermediate
    return LayerCost(attention + mlp, heads * head_dim, 2 * kv_heads * head_dim)


def flops(
    layers: Sequence[LayerCost],
    tokens: Sequence[int],
    past: Sequence[int] | None = None,
    others: Sequence[Others | None] | None = None,
) -> int:
    """Return the prefill FLOPs of a decoder.

    Args:
        layers: Cost of every layer.
        tokens: Number of tokens that run in every layer, including text.
        past: Number of tokens that every layer has cached; None for none.
        others: Tokens that do not run all of a layer, for every layer; None for none.
    """
    cached = past if past is not None else [0] * len(layers)
    apart = others if others is not None else [None] * len(layers)
    return sum(layer.flops(n, p, o) for layer, n, p, o in zip(layers, tokens, cached, apart, strict=True))


def kv_numbers(layers: Sequence[LayerCost], tokens: Sequence[int]) -> int:
    """Return the count of numbers in the KV cache when layer `l` stores `tokens[l]` tokens."""
    return sum(layer.kv_numbers(n) for layer, n in zip(layers, tokens, strict=True))


def paper_flops_reduction(tokens: Sequence[float], visual: int, hidden: int, intermediate: int) -> float:
    """Return the FLOPs reduction by FEATHER's Eq. 1, C(n) = 4 n d^2 + 2 n^2 d + 2 n d m (arXiv 2412.13180; as FastV's).

    Args:
        tokens: Number of visual tokens that every layer sees; text does not count.
        visual: Number of visual tokens before pruning.
        hidden: D.
        intermediate: M.

    Returns:
        The fraction saved, in [0, 1].
    """

    def cost(n: float) -> float:
        return 4 * n * hidden**2 + 2 * n**2 * hidden + 2 * n * hidden * intermediate

    return 1 - sum(map(cost, tokens)) / (len(tokens) * cost(visual))


def linear_reduction(tokens: Sequence[float], visual: int) -> float:
    """Return the fraction of visual tokens saved over all layers, which the paper's printed percentages match.

    >>> round(100 * linear_reduction([729] * 3 + [182] * 29, 729))
    68
    """
    return 1 - sum(tokens) / (len(tokens) * visual)
