"""What criteria may read from a running model.

A criterion names the signals it needs; an engine measures them, lazily and only if asked. The names are data, so
that an engine can arm itself before the layer in question runs. How a signal is measured is the engine's business.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from feathervlm.core.schedule import Schedule

ScoreLayer = Literal["K-1", "K"]
Support = Literal["visual", "all"]
FeatureSource = Literal["vision", "projected"]
EncoderSource = Literal["cls", "received"]
Heads = Literal["mean", "joint"]


@dataclass(frozen=True)
class Attention:
    """Attention probability from the query row to every visual token, mean over heads: (batch, visual) float32.

    Args:
        layer: whose q/k projections: "K-1", the last layer that saw all tokens, or "K", the one about to run.
        rope: rotate q and k as the layer does, or compare them as they are.
        over: softmax over the visual keys that are still there, or over all keys the query may see.
    """

    layer: ScoreLayer = "K-1"
    rope: bool = True
    over: Support = "visual"


@dataclass(frozen=True)
class Features:
    """Feature vector of every visual token: (batch, visual, dim) float32.

    Args:
        source: "vision", patch features of the vision encoder before the projector, or "projected", the embeddings
            that enter the language model.
    """

    source: FeatureSource = "vision"


@dataclass(frozen=True)
class EncoderAttention:
    """Attention inside the vision encoder that the patches of every visual token get: (batch, visual) float32.

    Args:
        layer: of the encoder, counted from the first (0) or from the last (-1), or a fraction of its depth.
        source: "cls", from the [CLS] token where the encoder has one, else as "received": the mean over all that look,
            the [CLS] token included.
        heads: "mean" over the heads, or "joint", one softmax over queries and keys that are not split into heads.
    """

    layer: int | float = -2
    source: EncoderSource = "cls"
    heads: Heads = "mean"


@dataclass(frozen=True)
class EncoderKeys:
    """Keys inside the vision encoder, of every visual token the mean over its patches: (batch, visual, dim) float32.

    As the encoder's attention compares them: rotated and normed where it does so.

    Args:
        layer: of the encoder, counted from the first (0) or from the last (-1), or a fraction of its depth.
        heads: "mean" over the heads, or "joint", all heads side by side.
    """

    layer: int | float = -2
    heads: Heads = "mean"


@dataclass(frozen=True)
class Survivors:
    """The tokens that are left after `schedule` has run on the same input: (batch, visual) bool."""

    schedule: "Schedule"


EncoderSignal = EncoderAttention | EncoderKeys
Signal = Attention | Features | EncoderSignal | Survivors


class Signals(Protocol):
    """A source of signals at one stage of one forward pass."""

    def read(self, signal: Signal) -> Tensor:
        """Measure `signal`; absent tokens hold any value.

        Raises:
            Unprunable: if the model or the input cannot give it.
        """
        ...
