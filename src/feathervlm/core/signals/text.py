"""Signals of the text of the prompt."""

from dataclasses import dataclass

from feathervlm.core.errors import PruningError
from feathervlm.core.signals.base import Signal, TextPart
from feathervlm.core.signals.features import Features
from feathervlm.core.signals.layers import Keys, Values


@dataclass(frozen=True)
class Text(Signal):
    """Vectors of the text tokens of the prompt instead of the visual ones: (batch, texts, dim).

    Text is every token that is neither visual nor padding, up to the query token, including the chat template and
    separators inside an image. In a later turn of a conversation it is the text of that turn. `IsText` says which of
    the `texts` a sample has; the others hold any value.

    Args:
        of: The signal that is measured for text tokens.

    Raises:
        PruningError: If text has no such vectors.
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
    def reads_own_layer(self) -> bool:
        return self.of.reads_own_layer

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
