"""What criteria may read from a running model.

A criterion names the signals it needs; an engine measures them, lazily and only if asked. The names are data, so
that an engine can arm itself before the layer in question runs. How a signal is measured is the engine's business.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from feathervlm.core.errors import PruningError


def encoder_layer_index(layer: int | float, depth: int) -> int:
    """The layer of an encoder that a fraction of its depth means, rounded to the nearest; others as they are.

    >>> encoder_layer_index(1 / 12, 24), encoder_layer_index(-2, 24)
    (2, -2)
    """
    return min(int(layer * depth + 0.5), depth - 1) if isinstance(layer, float) else layer


ScoreLayer = Literal["K-1", "K"]


Support = Literal["visual", "all"]


FeatureSource = Literal["vision", "projected", "hidden"]


EncoderSource = Literal["cls", "received"]


Heads = Literal["mean", "joint"]


TextPart = Literal["all", "behind"]


Point = Literal["entry", "middle"]


Wave = Literal["cos", "sin"]


class Signal:
    """Base of all signals: a frozen dataclass that names one measurement.

    The engine has one probe for each class of signals; everything else asks a signal by the members of this class.
    """

    @property
    def measured(self) -> "Signal":
        """The signal of the visual tokens that is measured, where this one gives it for other tokens."""
        return self

    @property
    def reads_previous_layer(self) -> bool:
        """Whether it is measured in the layer before the stage's own, so that there must be one."""
        return False

    @property
    def compares_pairs(self) -> bool:
        """Whether it holds vectors, which a criterion may compare in pairs: float32 (visual, visual)."""
        return True

    @property
    def attends(self) -> bool:
        """Whether it holds attention weights of a language model layer."""
        return False

    @property
    def rotated(self) -> bool:
        """Whether it holds attention weights that depend on rotary position embeddings."""
        return False

    def inner(self) -> Iterator["Signal"]:
        """Yield the signals of schedules inside this one."""
        yield from ()


class LayerSignal(Signal):
    """Base of signals that come from the projections of one language model layer."""

    layer: ScoreLayer
    rope: bool

    @property
    def reads_previous_layer(self) -> bool:
        return self.layer == "K-1"


class EncoderSignal(Signal):
    """Base of signals from inside the vision encoder."""


class EncoderMeasure(EncoderSignal):
    """Base of signals that are measured in a layer of the vision encoder."""

    layer: int | float
    heads: Heads


@dataclass(frozen=True)
class Attention(LayerSignal):
    """Attention probability from the query row to every visual token, mean over heads: (batch, visual) float32.

    Args:
        layer: whose q/k projections: "K-1", the last layer that saw all tokens, or "K", the one about to run.
        rope: rotate q and k as the layer does, or compare them as they are.
        over: softmax over the visual keys that are still there, or over all keys the query may see.
    """

    layer: ScoreLayer = "K-1"
    rope: bool = True
    over: Support = "visual"

    @property
    def attends(self) -> bool:
        return True

    @property
    def rotated(self) -> bool:
        return self.rope

    @property
    def compares_pairs(self) -> bool:
        return False


@dataclass(frozen=True)
class RaterAttention(Attention):
    """Attention probability from the raters to every visual token, mean over these and the heads: (batch, visual).

    Raters are words that the pictures are about; see `feathervlm.core.criteria.attention.raters`.

    Args:
        over: as in `Attention`, by default all keys.
        which: the text that raters are chosen from, "all" or what is "behind" the last image of its sample.
        heads: share of the heads that count, rounded down and at least one: those whose raters look most at visual
            tokens; 1 for all.
        least: divide what a rater gives a token by what rotation alone leaves between their places, the cosine of
            rotated vectors of ones, where it is smaller by this number; None not to divide.
    """

    over: Support = "all"
    which: TextPart = "behind"
    heads: float = 1.0
    least: float | None = None


@dataclass(frozen=True)
class Features(Signal):
    """Feature vector of every visual token: (batch, visual, dim) float32.

    Args:
        source: "vision", patch features of the vision encoder before the projector, "projected", the embeddings that
            enter the language model, or "hidden", the states that enter the stage's layer.
    """

    source: FeatureSource = "vision"


@dataclass(frozen=True)
class Keys(LayerSignal):
    """Keys of a language model layer, of every visual token, all its heads side by side: (batch, visual, dim).

    Args:
        layer: "K-1", the last layer that saw all tokens, or "K", the one about to run.
        rope: as they are cached, rotated by positions that may count padding, or as projected.
    """

    layer: ScoreLayer = "K-1"
    rope: bool = False


@dataclass(frozen=True)
class Values(LayerSignal):
    """Values of the last language model layer that saw all tokens, of every visual token: (batch, visual, heads, dim).

    Nothing rotates values, so they hold no position of their own. The heads are the key-value heads.
    """

    layer: ScoreLayer = field(default="K-1", init=False)
    rope: bool = field(default=False, init=False)


@dataclass(frozen=True)
class RotaryTable(Signal):
    """The row by which the stage's layer rotates every visual token: (batch, visual, channels).

    It follows from the position ids that the model has given out (M-RoPE included), counted from the first token of the
    prompt or turn, and from nothing in the picture.

    Args:
        of: the "cos" or the "sin" of position times frequency.
    """

    of: Wave = "cos"


@dataclass(frozen=True)
class LayerStates(Signal):
    """States inside the last layer that saw all tokens, of every visual token: (batch, visual, dim).

    Args:
        point: "entry", those that enter it, or "middle", what the norm behind its attention gives out.
    """

    point: Point = "entry"

    @property
    def reads_previous_layer(self) -> bool:
        return True


@dataclass(frozen=True)
class Text(Signal):
    """Vectors of the text tokens of the prompt instead of the visual ones: (batch, texts, dim).

    Text is what is neither visual nor padding, the template's own tokens and separators inside an image included, up
    to the token that asks. In a later turn of a conversation it is that turn's. Which of the `texts` a sample has,
    `IsText` tells; the others hold any value.

    Args:
        of: what is measured.

    Raises:
        PruningError: if text has no such vectors.
    """

    of: Features | Keys | Values

    def __post_init__(self) -> None:
        if not isinstance(self.of, Features | Keys | Values) or self.of == Features("vision"):
            raise PruningError(
                f"Text has no {self.of!r}; give Features('projected'), Features('hidden'), Keys(...) or Values()."
            )

    @property
    def measured(self) -> Signal:
        return self.of

    @property
    def reads_previous_layer(self) -> bool:
        return self.of.reads_previous_layer


@dataclass(frozen=True)
class IsText(Signal):
    """Which of the `texts` of `Text` are there: bool (batch, texts), in the order of the prompt.

    Args:
        which: "all", or those "behind" the last image of their sample, the question as a rule.
    """

    which: TextPart = "all"

    @property
    def compares_pairs(self) -> bool:
        return False


@dataclass(frozen=True)
class EncoderAttention(EncoderMeasure):
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

    @property
    def compares_pairs(self) -> bool:
        return False


@dataclass(frozen=True)
class EncoderKeys(EncoderMeasure):
    """Keys inside the vision encoder, of every visual token the mean over its patches: (batch, visual, dim) float32.

    As the encoder's attention compares them: rotated and normed where it does so.

    Args:
        layer: of the encoder, counted from the first (0) or from the last (-1), or a fraction of its depth.
        heads: "mean" over the heads, or "joint", all heads side by side.
    """

    layer: int | float = -2
    heads: Heads = "mean"


@dataclass(frozen=True)
class Representatives(EncoderSignal):
    """Share of the patches of every visual token that stand for their group, where the vision encoder has merged some.

    (batch, visual) float32. The first patch of a group, in the order of the encoder, stands for it.
    """


class Signals(Protocol):
    """A source of signals at one stage of one forward pass."""

    def read(self, signal: Signal) -> Tensor:
        """Measure `signal`; absent tokens hold any value.

        Raises:
            Unprunable: if the model or the input cannot give it.
        """
        ...
