"""Signals from inside the vision encoder."""

from dataclasses import dataclass
from typing import Literal

from feathervlm.core.signals.base import Signal, written_layer

EncoderSource = Literal["cls", "received"]
"""Which queries of the vision encoder count: that of [CLS], or all of them."""


Heads = Literal["mean", "joint"]
"""Attention as the mean over heads, or of queries and keys that are not split into heads."""


def encoder_layer_index(layer: int | float, depth: int) -> int:
    """Return the layer that a fraction of an encoder's depth stands for, rounded to the nearest; integers unchanged.

    >>> encoder_layer_index(1 / 12, 24), encoder_layer_index(-2, 24)
    (2, -2)
    """
    return min(int(layer * depth + 0.5), depth - 1) if isinstance(layer, float) else layer


class EncoderSignal(Signal):
    """Base of signals from inside the vision encoder."""

    @property
    def in_encoder(self) -> bool:
        return True

    @property
    def has_vectors(self) -> bool:
        """Whether it gives a vector for every token and not a single number."""
        return False

    @property
    def has_layers(self) -> bool:
        """Whether it gives its values for every layer of the encoder."""
        return False


class EncoderMeasure(EncoderSignal):
    """Base of signals that are measured in a layer of the vision encoder."""

    layer: int | float
    heads: Heads

    def encoder_layer(self, depth: int) -> int | None:
        layer = encoder_layer_index(self.layer, depth)
        return layer + depth if layer < 0 else layer


@dataclass(frozen=True)
class EncoderAttention(EncoderMeasure):
    """Attention inside the vision encoder that the patches of every visual token receive: (batch, visual) float32.

    Args:
        layer: Layer of the encoder, counted from the first (0) or from the last (-1), or a fraction of its depth.
        source: "cls", the row of the [CLS] token where the encoder has one; otherwise, and for "received", the mean
            over all queries, the [CLS] token included.
        heads: "mean" over the heads, or "joint", one softmax over queries and keys that are not split into heads.
    """

    layer: int | float = -2
    source: EncoderSource = "cls"
    heads: Heads = "mean"

    @property
    def compares_pairs(self) -> bool:
        return False

    def describe(self) -> str:
        return f"attention inside the vision encoder, layer {written_layer(self.layer)}"


@dataclass(frozen=True)
class EncoderKeys(EncoderMeasure):
    """Keys inside the vision encoder, for every visual token the mean over its patches: (batch, visual, dim) float32.

    Keys are as the encoder's attention compares them: rotated and normed where it does so.

    Args:
        layer: Layer of the encoder, counted from the first (0) or from the last (-1), or a fraction of its depth.
        heads: "mean" over the heads, or "joint", all heads side by side.
    """

    layer: int | float = -2
    heads: Heads = "mean"

    @property
    def has_vectors(self) -> bool:
        return True

    def describe(self) -> str:
        return f"keys inside the vision encoder, layer {written_layer(self.layer)}"


@dataclass(frozen=True)
class Representatives(EncoderSignal):
    """Share of the patches of every visual token that represent their group, where the vision encoder merges patches.

    The shape is (batch, visual), float32. The first patch of a group, in the encoder's order, represents it.
    """

    @property
    def has_layers(self) -> bool:
        return True

    def describe(self) -> str:
        return "which patches the vision encoder has merged"
