"""Signals from one layer of the language model."""

from dataclasses import dataclass, field
from typing import Literal

from feathervlm.core.signals.base import Signal, TextPart

ScoreLayer = Literal["K-1", "K"]
"""The layer that scores: the last one that saw all tokens, or the one about to run."""


Support = Literal["visual", "all"]
"""Keys of the softmax of attention: the visual ones that enter the stage, or all that the query may see."""


Point = Literal["entry", "middle"]
"""Where the states of a layer are read: as they enter it, or after its attention."""


Wave = Literal["cos", "sin"]
"""Which table of the rotary embedding is read."""


_CUT = {"K-1": "before the cut", "K": "after the cut"}


class LayerSignal(Signal):
    """Base of signals that come from the projections of one language model layer."""

    layer: ScoreLayer
    rope: bool

    @property
    def reads_previous_layer(self) -> bool:
        return self.layer == "K-1"

    @property
    def reads_own_layer(self) -> bool:
        return self.layer == "K"


@dataclass(frozen=True)
class Attention(LayerSignal):
    """Attention probability from the query row to every visual token, mean over heads: (batch, visual) float32.

    Args:
        layer: "K-1", the last layer that saw all tokens, or "K", the layer about to run.
        rope: Whether q and k are rotated as in the layer, or compared without rotation.
        over: Keys of the softmax: the "visual" tokens that enter the stage, or "all" that the query may see.
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
class HeadAttention(Attention):
    """Attention probability from the query row to every visual token in every head: (batch, visual, heads) float32.

    Args:
        over: Keys of the softmax as in `Attention`, by default all.
    """

    over: Support = "all"


@dataclass(frozen=True)
class RaterAttention(Attention):
    """Attention probability from the raters to every visual token, mean over raters and heads: (batch, visual).

    Raters are words that the pictures are about; see `feathervlm.core.criteria.attention.raters`.

    Args:
        over: Keys of the softmax as in `Attention`, by default all.
        text: Text that raters are chosen from: "all" or the "question" after the last image of the sample.
        heads: Share of the heads that count, rounded down and at least one: the heads whose raters attend most to
            visual tokens; 1 for all.
        min_decay: Smallest divisor. The attention from a rater to a token is divided by what rotation alone leaves
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
class Keys(LayerSignal):
    """Keys of a language model layer for every visual token, all heads side by side: (batch, visual, dim).

    Args:
        layer: "K-1", the last layer that saw all tokens, or "K", the layer about to run.
        rope: Whether keys are rotated as in the cache, by positions that may count padding, or as projected.
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
        of: The "cos" or the "sin" of position times frequency.
    """

    of: Wave = "cos"

    @property
    def reads_own_layer(self) -> bool:
        return True

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

    @property
    def of_updated(self) -> bool:
        return True

    def describe(self) -> str:
        where = "that enter" if self.point == "entry" else "after the attention of"
        return f"hidden states {where} the layer before the cut"
