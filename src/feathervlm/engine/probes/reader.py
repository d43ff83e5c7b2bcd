"""The signals of one pruned forward: attaches the probes that its stages need and answers criteria from them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from feathervlm.core.schedule import Stage
from feathervlm.core.signals import Signal
from feathervlm.engine.call import ModelCall
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.probes.base import ForwardContext
from feathervlm.engine.probes.prompt_text import PromptText
from feathervlm.engine.rows import RowTracker


class SignalReader:
    """The source of signals of one forward; see `feathervlm.core.signals.Signals`.

    Args:
        decoder: View of the decoder.
        family: Family of the model.
        call: The call that is about to run.
        rows: The rows of the forward, none of them dropped yet.
        survivors: Results of scoring passes, bool (batch, visual) by their signal.
    """

    def __init__(
        self,
        decoder: DecoderView,
        family: Family,
        call: ModelCall,
        rows: RowTracker,
        survivors: Mapping[Any, Tensor],
    ) -> None:
        self.forward = ForwardContext(decoder, family, call, rows, PromptText(rows.turns), survivors)
        self.at = -1

    def attach(self, stage: Stage, at: int) -> list[RemovableHandle]:
        """Register the hooks for the signals that a stage before layer `at` reads.

        Raises:
            Unprunable: If the model cannot give one of them.
        """
        return [handle for signal in stage.signals() for handle in self.forward.probe(signal, at).attach()]

    def enter(self, at: int, hidden: Tensor, arguments: dict[str, Any]) -> None:
        """Begin a stage.

        Args:
            at: Index of the layer that tokens are dropped before.
            hidden: States of the present rows that are about to enter that layer.
            arguments: The layer's other arguments, for all rows.
        """
        self.at, self.forward.entering = at, (hidden, arguments)

    def leave(self) -> None:
        """End the stage."""
        self.forward.entering = None

    def notes(self, stage: Stage) -> list[str]:
        """Return what the user should know about the layers that the current stage was scored with."""
        notes = [self.forward.probe(signal, self.at).note for signal in stage.signals()]
        return [note for note in dict.fromkeys(notes) if note]

    def read(self, signal: Signal) -> Tensor:
        """Measure a signal for the current stage; see `feathervlm.core.signals.Signals.read`."""
        return self.forward.read(signal, self.at)
