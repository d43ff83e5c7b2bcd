"""What criteria may read from a running model.

A criterion names the signals it needs; an engine measures them lazily and only if asked. A signal is plain data, so
an engine can prepare its measurement before the layer in question runs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, Protocol

from torch import Tensor

from feathervlm.core.errors import PruningError

ScoreLayer = Literal["K-1", "K"]
Support = Literal["visual", "all"]
FeatureSource = Literal["vision", "projected", "hidden"]
EncoderSource = Literal["cls", "received"]
Heads = Literal["mean", "joint"]
TextPart = Literal["all", "question"]
Point = Literal["entry", "middle"]
Wave = Literal["cos", "sin"]

_CUT = {"K-1": "before the cut", "K": "after the cut"}


def encoder_layer_index(layer: int | float, depth: int) -> int:
    """Return the layer that a fraction of an encoder's depth stands for, rounded to the nearest; integers unchanged.

    >>> encoder_layer_index(1 / 12, 24), encoder_layer_index(-2, 24)
    (2, -2)
    """
    return min(int(layer * depth + 0.5), depth - 1) if isinstance(layer, float) else layer


def written_layer(layer: int | float) -> str:
    """Write a layer for readers: a fraction of the depth as a fraction, an integer as it is.

    >>> written_layer(0.25), written_layer(-2)
    ('1/4', '-2')
    """
    if isinstance(layer, int):
        return str(layer)
    fraction = Fraction(layer).limit_denominator(64)
    return str(fraction) if abs(float(fraction) - layer) < 1e-6 else f"{layer:g}"


class Signal:
    """Base of all signals: a frozen dataclass that names one measurement.

    The engine has one probe for each class of signals; all other code uses the members of this class.
    """

    @property
    def measured(self) -> "Signal":
        """The signal of the visual tokens that is measured, for a signal that gives it for other tokens."""
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
    def needs_text(self) -> bool:
        """Whether it depends on the text of the prompt."""
        return False

    @property
    def in_encoder(self) -> bool:
        """Whether it is measured inside the vision encoder."""
        return False

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

    def describe(self) -> str:
        """Describe the measurement in a few words; empty for a signal that only accompanies others."""
        raise NotImplementedError(f"{type(self).__name__} needs a describe() that says what it measures.")


def describe_signals(signals: Iterable[Signal]) -> str:
    """Describe what a stage reads, in one phrase."""
    phrases = dict.fromkeys(filter(None, (signal.describe() for signal in signals)))
    return " and ".join(phrases) or "nothing but the grid"


class LayerSignal(Signal):
    """Base of signals that come from the projections of one language model layer."""

    layer: ScoreLayer
    rope: bool

    @property
    def reads_previous_layer(self) -> bool:
        return self.layer == "K-1"


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


@dataclass(frozen=True)
class Attention(LayerSignal):
    """Attention probability from the query row to every visual token, mean over heads: (batch, visual) float32.

    Args:
        layer: "K-1", the last layer that saw all tokens, or "K", the layer about to run.
        rope: whether q and k are rotated as in the layer, or compared without rotation.
        over: keys of the softmax: the "visual" tokens that enter the stage, or "all" that the query may see.
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

    @property
    def needs_text(self) -> bool:
        return True

    @property
    def asking(self) -> str:
        """What the queries are, in words."""
        return "the last prompt token"

    def describe(self) -> str:
        rope = "with" if self.rope else "without"
        return (
            f"attention of {self.asking} in the layer {_CUT[self.layer]}, {rope} RoPE, softmax over {self.over} tokens"
        )


@dataclass(frozen=True)
class RaterAttention(Attention):
    """Attention probability from the raters to every visual token, mean over raters and heads: (batch, visual).

    Raters are words that the pictures are about; see `feathervlm.core.criteria.attention.raters`.

    Args:
        over: keys of the softmax as in `Attention`, by default all.
        text: text that raters are chosen from: "all" or the "question" after the last image of the sample.
        heads: share of the heads that count, rounded down and at least one: the heads whose raters attend most to
            visual tokens; 1 for all.
        min_decay: smallest divisor. The attention from a rater to a token is divided by what rotation alone leaves
            between their positions, the cosine of rotated vectors of ones, or by this number where that is smaller;
            None not to divide.
    """

    over: Support = "all"
    text: TextPart = "question"
    heads: float = 1.0
    min_decay: float | None = None

    @property
    def asking(self) -> str:
        return "the words that the image is about"


@dataclass(frozen=True)
class Features(Signal):
    """Feature vector of every visual token: (batch, visual, dim) float32.

    Args:
        source: "vision", patch features of the vision encoder before the projector; "projected", the embeddings that
            enter the language model; or "hidden", the states that enter the stage's layer.
    """

    source: FeatureSource = "vision"

    def describe(self) -> str:
        return {
            "vision": "patch features of the vision encoder, before the projector",
            "projected": "projected features, as they enter the language model",
            "hidden": "hidden states that enter the layer after the cut",
        }[self.source]


@dataclass(frozen=True)
class Keys(LayerSignal):
    """Keys of a language model layer for every visual token, all heads side by side: (batch, visual, dim).

    Args:
        layer: "K-1", the last layer that saw all tokens, or "K", the layer about to run.
        rope: whether keys are rotated as in the cache, by positions that may count padding, or as projected.
    """

    layer: ScoreLayer = "K-1"
    rope: bool = False

    def describe(self) -> str:
        return f"keys of the layer {_CUT[self.layer]}, {'with' if self.rope else 'without'} RoPE"


@dataclass(frozen=True)
class Values(LayerSignal):
    """Values of the last language model layer that saw all tokens, for every visual token: (batch, visual, heads, dim).

    Values are not rotated, so they do not depend on the token's own position. Heads are the key-value heads.
    """

    layer: ScoreLayer = field(default="K-1", init=False)
    rope: bool = field(default=False, init=False)

    def describe(self) -> str:
        return f"values of the layer {_CUT[self.layer]}"


@dataclass(frozen=True)
class RotaryTable(Signal):
    """Row of the rotary table by which the stage's layer rotates every visual token: (batch, visual, channels).

    It depends on the position ids (M-RoPE included), counted from the first token of the prompt or turn, and not on
    the picture.

    Args:
        of: the "cos" or the "sin" of position times frequency.
    """

    of: Wave = "cos"

    def describe(self) -> str:
        return f"the {'cosines' if self.of == 'cos' else 'sines'} by which positions are rotated"


@dataclass(frozen=True)
class LayerStates(Signal):
    """States inside the last layer that saw all tokens, for every visual token: (batch, visual, dim).

    Args:
        point: "entry", the states that enter the layer, or "middle", the output of the norm after its attention.
    """

    point: Point = "entry"

    @property
    def reads_previous_layer(self) -> bool:
        return True

    def describe(self) -> str:
        where = "that enter" if self.point == "entry" else "after the attention of"
        return f"hidden states {where} the layer before the cut"


@dataclass(frozen=True)
class Text(Signal):
    """Vectors of the text tokens of the prompt instead of the visual ones: (batch, texts, dim).

    Text is every token that is neither visual nor padding, up to the query token, including the chat template and
    separators inside an image. In a later turn of a conversation it is the text of that turn. `IsText` says which of
    the `texts` a sample has; the others hold any value.

    Args:
        of: the signal that is measured for text tokens.

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

    @property
    def needs_text(self) -> bool:
        return True

    def describe(self) -> str:
        if isinstance(self.of, Features):
            return "embeddings of text" if self.of.source == "projected" else "hidden states of text"
        return "keys of text" if isinstance(self.of, Keys) else "values of text"


@dataclass(frozen=True)
class IsText(Signal):
    """Which of the `texts` of `Text` a sample has: bool (batch, texts), in the order of the prompt.

    Args:
        text: "all", or the "question": the text after the last image of the sample.
    """

    text: TextPart = "all"

    @property
    def compares_pairs(self) -> bool:
        return False

    @property
    def needs_text(self) -> bool:
        return True

    def describe(self) -> str:
        return ""


@dataclass(frozen=True)
class EncoderAttention(EncoderMeasure):
    """Attention inside the vision encoder that the patches of every visual token receive: (batch, visual) float32.

    Args:
        layer: layer of the encoder, counted from the first (0) or from the last (-1), or a fraction of its depth.
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
        layer: layer of the encoder, counted from the first (0) or from the last (-1), or a fraction of its depth.
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


Vectors = Features | EncoderKeys
"""The signals that mergers may compare: one vector for every token."""


def check_vectors(value: object, name: str = "vectors") -> None:
    """Raise `PruningError` unless `value` is a signal with one vector for every token."""
    if not isinstance(value, Features | EncoderKeys):
        raise PruningError(f"{name}={value!r} has no vectors to compare; give Features(...) or EncoderKeys(...).")


def check_keys(value: object, name: str = "keys") -> None:
    """Raise `PruningError` unless `value` names keys of a language model layer."""
    if not isinstance(value, Keys):
        raise PruningError(f"{name}={value!r} must be Keys(...).")


class Signals(Protocol):
    """A source of signals at one stage of one forward pass."""

    def read(self, signal: Signal) -> Tensor:
        """Measure `signal`; absent tokens hold any value.

        Raises:
            Unprunable: if the model or the input cannot give it.
        """
        ...
