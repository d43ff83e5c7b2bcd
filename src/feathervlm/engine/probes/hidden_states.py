"""States of visual tokens inside a layer, taken down while it runs: no layer runs twice or ahead."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.signals import LayerStates
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.gather import rows
from feathervlm.engine.probes.base import Probe, RowView


class HiddenStateProbe(Probe):
    """Captures the states that enter a layer, or those in its middle.

    Args:
        decoder: view of the decoder.
        layer: which.
        where: tells where things are when the layer runs.
        signal: which states.
    """

    def __init__(self, decoder: DecoderView, layer: int, where: Callable[[], RowView], signal: LayerStates) -> None:
        super().__init__(decoder, layer, where)
        self.signal = signal
        self.states: Tensor | None = None  # (batch, visual, dim)

    def attach(self) -> list[RemovableHandle]:
        """Start listening.

        Raises:
            Unprunable: if the layer has no norm in its middle, and that is what to listen to.
        """
        if self.signal.point == "entry":
            return [self.decoder.layers[self.layer].register_forward_pre_hook(self._enter, with_kwargs=True)]
        middle = self.decoder.middle_norm(self.layer)
        return [middle.register_forward_hook(lambda module, args, out: self._keep(out))]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(args[0] if args else kwargs["hidden_states"])

    def _keep(self, states: Tensor) -> None:
        self.states = rows(states.detach(), self.where().slots, -2)
