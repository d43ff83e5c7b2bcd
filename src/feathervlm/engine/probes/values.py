"""Values of a layer, taken down while it computes them: nothing is projected a second time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import Unprunable
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.probes.base import Probe, RowView


class ValueProbe(Probe):
    """Captures the values of a layer."""

    def __init__(self, decoder: DecoderView, layer: int, where: Callable[[], RowView]) -> None:
        super().__init__(decoder, layer, where)
        self.heads, self.kv_heads, self.dim = decoder.head_counts(layer)
        self.values: Tensor | None = None  # (batch, sequence, kv heads, dim)

    def attach(self) -> list[RemovableHandle]:
        """Start listening.

        Raises:
            Unprunable: if the layer has no projection under a known name.
        """
        module = self.decoder.attention_module(self.layer)
        names = "v_norm", "v_proj", "qkv_proj"
        for name in names:
            found = getattr(module, name, None)
            if isinstance(found, nn.Module):
                return [found.register_forward_hook(self._see)]
        raise Unprunable(
            f"Layer {self.layer} of {type(self.decoder.model).__name__} has none of {', '.join(names)} to read values "
            "from; choose a method that does not compare values."
        )

    def vectors(self, index: Tensor) -> Tensor:
        """Values of the rows `index` (batch, n) of the tensor that the layer saw: (batch, n, kv heads, dim)."""
        assert self.values is not None
        return torch.take_along_dim(self.values, index.to(self.values.device)[:, :, None, None], 1)

    def _see(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        self.row, out = self.where(), out.detach()
        sequence, width = self.row.positions.shape[1], self.kv_heads * self.dim
        if out.dim() == 3:
            self.values = out[..., -width:].unflatten(-1, (self.kv_heads, self.dim))  # last of a fused projection
            return
        if self.kv_heads == sequence:
            raise Unprunable(f"A prompt of {sequence} tokens for {sequence} heads hides which dimension is which.")
        self.values = out if out.shape[1] == sequence else out.transpose(1, 2)
