"""Attention and keys inside the vision encoder, and which of its patches stand for a group."""

from abc import abstractmethod
from typing import Any, TypeVar

from torch import Tensor

from feathervlm.core.signals import EncoderAttention, EncoderKeys, EncoderMeasure, EncoderSignal
from feathervlm.engine.probes.base import Probe
from feathervlm.engine.probes.registry import measures
from feathervlm.engine.vision.probe import received, undivided

E = TypeVar("E", bound=EncoderSignal)
M = TypeVar("M", bound=EncoderMeasure)


@measures(EncoderSignal)
class EncoderSignalProbe(Probe[E]):
    """Reads what was recorded when the vision encoder ran, laid out by the family."""

    def read(self) -> Tensor:
        forward = self.forward
        return forward.turns.split(forward.family.inside_encoder(forward.call, forward.rows.layout, self.signal))


class EncoderMeasureProbe(EncoderSignalProbe[M]):
    """Base of the probes that record an attention layer of the vision encoder; see `vision.probe.EncoderProbe`."""

    hooks_encoder = True

    @classmethod
    @abstractmethod
    def measure(cls, signal: M, query: Tensor, key: Tensor, mask: Any, scaling: float, has_class: bool) -> Tensor:
        """Return the signal of every patch, float32 of shape (batch, patches) or (batch, patches, dim).

        Args:
            signal: The signal to measure.
            query: Queries of shape (batch, heads, queries, dim), as the layer compares them.
            key: Keys of shape (batch, kv heads, keys, dim), as the layer compares them.
            mask: Attention mask, bool or additive; None if there is none.
            scaling: Factor of the products of queries and keys.
            has_class: Whether the first token is a [CLS] token.
        """


@measures(EncoderAttention)
class EncoderAttentionProbe(EncoderMeasureProbe[EncoderAttention]):
    """Measures the attention that patches receive."""

    @classmethod
    def measure(
        cls, signal: EncoderAttention, query: Tensor, key: Tensor, mask: Any, scaling: float, has_class: bool
    ) -> Tensor:
        if signal.heads == "joint":
            query, key = undivided(query), undivided(key.repeat_interleave(query.shape[1] // key.shape[1], 1))
            scaling = query.shape[-1] ** -0.5
        return received(query, key, mask, scaling, has_class and signal.source == "cls")


@measures(EncoderKeys)
class EncoderKeysProbe(EncoderMeasureProbe[EncoderKeys]):
    """Measures keys, the mean over heads or all of them side by side."""

    @classmethod
    def measure(
        cls, signal: EncoderKeys, query: Tensor, key: Tensor, mask: Any, scaling: float, has_class: bool
    ) -> Tensor:
        return (undivided(key) if signal.heads == "joint" else key).float().mean(1)
