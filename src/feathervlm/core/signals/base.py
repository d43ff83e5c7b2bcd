"""What a signal is: a measurement in a running model that criteria read.

A criterion names the signals it needs; an engine measures them lazily and only if asked. A signal is plain data, so
an engine can prepare its measurement before the layer in question runs.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Literal, Protocol

from torch import Tensor

TextPart = Literal["all", "question"]
"""Which text of the prompt is read: all of it, or the question after the last image."""


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
    def reads_own_layer(self) -> bool:
        """Whether it is measured with the layer that follows the stage, so that there must be one."""
        return False

    @property
    def of_updated(self) -> bool:
        """Whether only tokens that the layer before the stage has updated have it."""
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

    def encoder_layer(self, depth: int) -> int | None:
        """Return the layer, from 0, of a vision encoder of `depth` layers that it is measured in; None for none."""
        return None

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


class Signals(Protocol):
    """A source of signals at one stage of one forward pass."""

    def read(self, signal: Signal) -> Tensor:
        """Measure `signal`; absent tokens hold any value.

        Raises:
            Unprunable: If the model or the input cannot give it.
        """
        ...
