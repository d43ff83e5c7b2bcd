"""States of visual tokens inside a decoder layer, recorded while it runs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.signals import LayerStates
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.family import Family
from feathervlm.engine.probes.base import LayerRecorder, Probe
from feathervlm.engine.probes.registry import measures
from feathervlm.engine.row_view import RowView


class HiddenStateRecorder(LayerRecorder):
    """Records the states that enter a layer, or that the norm after its attention returns.

    Args:
        decoder: View of the decoder.
        layer: Index of the layer.
        view: Function that returns where the tokens are when the layer runs.
        signal: The states to record.
    """

    def __init__(self, decoder: DecoderView, layer: int, view: Callable[[], RowView], signal: LayerStates) -> None:
        super().__init__(decoder, layer, view)
        self.signal = signal
        self.states: Tensor | None = None  # (batch, visual, dim)

    def attach(self) -> list[RemovableHandle]:
        if self.signal.point == "entry":
            return [self.decoder.layers[self.layer].register_forward_pre_hook(self._enter, with_kwargs=True)]
        middle = self.decoder.middle_norm(self.layer)
        return [middle.register_forward_hook(lambda module, args, output: self._record(output))]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._record(args[0] if args else kwargs["hidden_states"])

    def _record(self, states: Tensor) -> None:
        view = self.view()
        self.states = view.take(states.detach(), view.visual)


@measures(LayerStates)
class LayerStatesProbe(Probe[LayerStates]):
    """Measures states inside the layer before the stage."""

    @classmethod
    def check(cls, signal: LayerStates, decoder: DecoderView, family: Family, at: int) -> None:
        if signal.point == "middle":
            decoder.middle_norm(at - 1)

    def attach(self) -> list[RemovableHandle]:
        decoder, view = self.forward.decoder, self.forward.rows.view
        return self.forward.attach(
            (self.signal, self.at), lambda: HiddenStateRecorder(decoder, self.at - 1, view, self.signal)
        )

    def read(self) -> Tensor:
        recorder: HiddenStateRecorder = self.forward.recorders[self.signal, self.at]
        return recorder.found(recorder.states)
