"""What all probes share: the forward that they belong to, hooks on layers, and the interface of a probe."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.signals import Signal
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.probes.prompt_text import PromptText
from feathervlm.engine.probes.registry import probe_class
from feathervlm.engine.row_view import RowView
from feathervlm.engine.rows import RowTracker
from feathervlm.engine.turns import Turns

S = TypeVar("S", bound=Signal)
T = TypeVar("T")

Tokens = Literal["visual", "text"]
"""The tokens whose vectors a probe returns."""


class LayerRecorder(ABC):
    """Hooks that record what one decoder layer computes anyway.

    Args:
        decoder: View of the decoder.
        layer: Index of the layer.
        view: Function that returns where the tokens are when the layer runs.
    """

    def __init__(self, decoder: DecoderView, layer: int, view: Callable[[], RowView]) -> None:
        self.decoder, self.layer, self.view = decoder, layer, view
        self.recorded_view: RowView | None = None
        self._apart: dict[str, Tensor] = {}

    def of_all(self, name: str, output: Tensor, heads: int, view: RowView) -> Tensor | None:
        """Return what a layer made of all rows that are read, (batch, rows, heads * dim).

        Args:
            name: What the output is.
            output: What the layer made of the rows that it is given at the moment, in any layout that models use:
                (batch, given, heads * dim), or with heads as a dimension before or after the rows.
            heads: Number of heads.
            view: Where the tokens are.

        Returns:
            The states; None until those of all rows are known, where some are made apart.

        Raises:
            Unprunable: If the layout cannot be told.
        """
        if view.making_apart:
            self._apart[name] = output.detach()
            return None
        states = self.by_row(output, heads, view.given)
        if view.apart is None:
            return states
        apart = self._apart.pop(name)
        if apart.dim() == 4:
            apart = (apart.transpose(1, 2) if output.shape[1] == heads else apart).flatten(2)
        return view.apart.join(apart, states)

    def by_row(self, output: Tensor, heads: int, rows: int) -> Tensor:
        """Return (batch, rows, heads * dim) from any layout that models use.

        Raises:
            Unprunable: If there are as many rows as heads.
        """
        output = output.detach()
        if output.dim() == 3:
            return output
        if heads == rows:
            raise Unprunable(f"A prompt of {rows} tokens for {heads} heads hides which dimension is which.")
        return (output.transpose(1, 2) if output.shape[1] == heads else output).flatten(2)

    @property
    def seen(self) -> RowView:
        """Where the tokens were when the layer ran."""
        return self.found(self.recorded_view)

    def found(self, recorded: T | None) -> T:
        """Return what was recorded.

        Raises:
            PruningError: If there is nothing, for the layer has run without its hooks.
        """
        if recorded is None:
            raise PruningError(
                f"Layer {self.layer} of {type(self.decoder.model).__name__} ran without the hooks that measure it; "
                "undo what replaces its calls (a compiled or patched function that was made before)."
            )
        return recorded

    @abstractmethod
    def attach(self) -> list[RemovableHandle]:
        """Register the hooks.

        Raises:
            Unprunable: If the layer lacks the module to hook.
        """


@dataclass(eq=False)
class ForwardContext:
    """One forward as its probes see it.

    Attributes:
        decoder: View of the decoder.
        family: Family of the model.
        call: The call that runs.
        rows: The rows that are present.
        text: The text tokens of the prompt.
        survivors: Results of scoring passes, by their signal.
        recorders: Recorders that probes share, by what they record.
        entering: Hidden states of the present rows that enter the layer of the current stage, and that layer's other
            arguments for all rows; None between stages.
    """

    decoder: DecoderView
    family: Family
    call: ModelCall
    rows: RowTracker
    text: PromptText
    survivors: Mapping[Any, Tensor]
    recorders: dict[Hashable, Any] = field(default_factory=dict)
    entering: tuple[Tensor, dict[str, Any]] | None = None

    def probe(self, signal: Signal, at: int, tokens: Tokens = "visual") -> "Probe[Any]":
        """Return the probe of a signal that a stage before layer `at` reads."""
        probe: Probe[Any] = probe_class(signal)(signal, at, self, tokens)
        return probe

    def read(self, signal: Signal, at: int) -> Tensor:
        """Return a signal on the device of the rows, where tokens are selected, whatever device it was measured on."""
        measured: Tensor = self.probe(signal, at).read()
        return measured.to(self.rows.present.device)

    def attach(self, key: Hashable, make: Callable[[], LayerRecorder]) -> list[RemovableHandle]:
        """Attach a recorder unless one with this key is attached already, and return its new hooks."""
        if key in self.recorders:
            return []
        self.recorders[key] = make()
        return self.recorders[key].attach()  # type: ignore[no-any-return]  # recorders of any kind

    @property
    def turns(self) -> Turns:
        """The turns of the batch."""
        return self.rows.turns

    @property
    def present(self) -> Tensor:
        """True for visual tokens that were not dropped, bool (turns, visual)."""
        return self.turns.split(self.rows.present)

    def token_rows(self, tokens: Tokens, view: RowView) -> Tensor:
        """Return the rows of visual or text tokens where they lie as in `view`: long (turns, tokens)."""
        return self.text.rows(view.positions) if tokens == "text" else view.visual

    @property
    def stage_inputs(self) -> tuple[Tensor, dict[str, Any]]:
        """The hidden states and arguments on their way into the layer of the current stage."""
        assert self.entering is not None
        return self.entering


class Probe(ABC, Generic[S]):
    """The measurement of one signal for one stage of one forward.

    Args:
        signal: The signal to measure.
        at: Index of the layer that tokens are dropped before.
        forward: The forward.
        tokens: The tokens whose vectors to return.
    """

    hooks_encoder: ClassVar[bool] = False
    """Whether the signal is recorded in a layer of the vision encoder while that runs."""

    def __init__(self, signal: S, at: int, forward: ForwardContext, tokens: Tokens = "visual") -> None:
        self.signal, self.at, self.forward, self.tokens = signal, at, forward, tokens

    @classmethod
    def check(cls, signal: S, decoder: DecoderView, family: Family, at: int) -> None:
        """Check before any forward that a stage before layer `at` of a model can read a signal.

        Raises:
            Unprunable: If it cannot.
        """
        return

    @classmethod
    def check_later_turn(cls, signal: S) -> None:
        """Check that a signal can be measured when the cache holds earlier turns of the conversation.

        Raises:
            Unprunable: If it cannot.
        """
        return

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks that the signal needs.

        Raises:
            Unprunable: If the model lacks a module to hook.
        """
        return []

    @property
    def note(self) -> str | None:
        """What the user should know about the layer that was measured."""
        return None

    @abstractmethod
    def read(self) -> Tensor:
        """Return the signal; see `feathervlm.core.signals.Signals.read`."""
