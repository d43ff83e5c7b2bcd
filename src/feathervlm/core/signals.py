"""What criteria may read from a running model.

A criterion names the signals it needs; an engine measures them, lazily and only if asked. The names are data, so
that an engine can arm itself before the layer in question runs. How a signal is measured is the engine's business.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor

from feathervlm.core.errors import PruningError

if TYPE_CHECKING:
    from feathervlm.core.schedule import Schedule

ScoreLayer = Literal["K-1", "K"]
Support = Literal["visual", "all"]
FeatureSource = Literal["vision", "projected", "hidden"]
EncoderSource = Literal["cls", "received"]
Heads = Literal["mean", "joint"]
TextPart = Literal["all", "behind"]
Point = Literal["entry", "middle"]
Wave = Literal["cos", "sin"]


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
class RaterAttention(Attention):
    """Attention probability from the raters to every visual token, mean over these and the heads: (batch, visual).

    Raters are words that the pictures are about; see `feathervlm.core.relevance.raters`.

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
class Features:
    """Feature vector of every visual token: (batch, visual, dim) float32.

    Args:
        source: "vision", patch features of the vision encoder before the projector, "projected", the embeddings that
            enter the language model, or "hidden", the states that enter the stage's layer.
    """

    source: FeatureSource = "vision"


@dataclass(frozen=True)
class Keys:
    """Keys of a language model layer, of every visual token, all its heads side by side: (batch, visual, dim).

    Args:
        layer: "K-1", the last layer that saw all tokens, or "K", the one about to run.
        rope: as they are cached, rotated by positions that may count padding, or as projected.
    """

    layer: ScoreLayer = "K-1"
    rope: bool = False


@dataclass(frozen=True)
class Values:
    """Values of the last language model layer that saw all tokens, of every visual token: (batch, visual, heads, dim).

    Nothing rotates values, so they hold no position of their own. The heads are the key-value heads.
    """

    layer: ClassVar[ScoreLayer] = "K-1"
    rope: ClassVar[bool] = False


@dataclass(frozen=True)
class RotaryTable:
    """The row by which the stage's layer rotates every visual token: (batch, visual, channels).

    It follows from the position ids that the model has given out (M-RoPE included), counted from the first token of the
    prompt or turn, and from nothing in the picture.

    Args:
        of: the "cos" or the "sin" of position times frequency.
    """

    of: Wave = "cos"


@dataclass(frozen=True)
class LayerStates:
    """States inside the last layer that saw all tokens, of every visual token: (batch, visual, dim).

    Args:
        point: "entry", those that enter it, or "middle", what the norm behind its attention gives out.
    """

    point: Point = "entry"


@dataclass(frozen=True)
class Text:
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


@dataclass(frozen=True)
class IsText:
    """Which of the `texts` of `Text` are there: bool (batch, texts), in the order of the prompt.

    Args:
        which: "all", or those "behind" the last image of their sample, the question as a rule.
    """

    which: TextPart = "all"


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
class Representatives:
    """Share of the patches of every visual token that stand for their group, where the vision encoder has merged some.

    (batch, visual) float32. The first patch of a group, in the order of the encoder, stands for it.
    """


@dataclass(frozen=True)
class Survivors:
    """The tokens that are left after `schedule` has run on the same input: (batch, visual) bool.

    Raises:
        PruningError: if it merges in the vision encoder, which runs once and before it.
    """

    schedule: "Schedule"

    def __post_init__(self) -> None:
        if self.schedule.tower is not None:
            raise PruningError("A scoring pass comes behind the vision encoder, so its schedule can have no tower.")


EncoderMeasure = EncoderAttention | EncoderKeys
EncoderSignal = EncoderMeasure | Representatives
LayerSignal = Attention | Keys | Values
Signal = LayerSignal | LayerStates | RotaryTable | Features | Text | IsText | EncoderSignal | Survivors


def measured(signal: Signal) -> Signal:
    """The signal that is measured for `signal`: of visual tokens and text alike."""
    return signal.of if isinstance(signal, Text) else signal


def from_before(signal: Signal) -> bool:
    """Whether a signal is measured in the layer before the stage's own, so that there must be one."""
    signal = measured(signal)
    return isinstance(signal, LayerStates) or (isinstance(signal, LayerSignal) and signal.layer == "K-1")


class Signals(Protocol):
    """A source of signals at one stage of one forward pass."""

    def read(self, signal: Signal) -> Tensor:
        """Measure `signal`; absent tokens hold any value.

        Raises:
            Unprunable: if the model or the input cannot give it.
        """
        ...
