"""States of visual tokens inside a layer, taken down while it runs: no layer runs twice or ahead."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.signals import LayerStates
from feathervlm.engine.anatomy import Anatomy, rows
from feathervlm.engine.tap import Row, Tap


class StateTap(Tap):
    """Captures the states that enter a layer and those in its middle."""

    def __init__(self, anatomy: Anatomy, layer: int, where: Callable[[], Row]) -> None:
        super().__init__(anatomy, layer, where)
        self.states: dict[LayerStates, Tensor] = {}  # (batch, visual, dim) each

    def attach(self) -> list[RemovableHandle]:
        """Start listening.

        Raises:
            Unprunable: if the layer has no norm in its middle.
        """
        middle = self.anatomy.middle_norm(self.layer)
        return [
            self.anatomy.layers[self.layer].register_forward_pre_hook(self._enter, with_kwargs=True),
            middle.register_forward_hook(lambda module, args, out: self._keep("middle", out)),
        ]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep("entry", args[0] if args else kwargs["hidden_states"])

    def _keep(self, point: Any, states: Tensor) -> None:
        self.states[LayerStates(point)] = rows(states.detach(), self.where().slots, -2)
