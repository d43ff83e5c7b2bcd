"""The values of a decoder layer, recorded while it computes them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import Values
from feathervlm.engine.decoder import DecoderView
from feathervlm.engine.probes.base import LayerRecorder
from feathervlm.engine.probes.query_key import LayerSignalProbe
from feathervlm.engine.probes.registry import measures
from feathervlm.engine.row_view import RowView


class ValueRecorder(LayerRecorder):
    """Records the values of a layer while it runs."""

    def __init__(self, decoder: DecoderView, layer: int, view: Callable[[], RowView]) -> None:
        super().__init__(decoder, layer, view)
        _, self.kv_heads, self.dim = decoder.head_counts(layer)
        self.values: Tensor | None = None  # (batch, sequence, kv heads, dim)

    def attach(self) -> list[RemovableHandle]:
        module = self.decoder.attention_module(self.layer)
        names = "v_norm", "v_proj", "qkv_proj", "Wqkv"
        for name in names:
            part = getattr(module, name, None)
            if isinstance(part, nn.Module):
                return [part.register_forward_hook(self._record)]
        raise Unprunable(
            f"Layer {self.layer} of {type(self.decoder.model).__name__} has none of {', '.join(names)} to read values "
            "from; choose a method that does not compare values."
        )

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        view, width = self.view(), self.kv_heads * self.dim
        output = output[..., -width:] if output.dim() == 3 else output  # last of a fused projection
        values = self.of_all("values", output, self.kv_heads, view)
        if values is not None:
            self.recorded_view, self.values = view, values.unflatten(-1, (self.kv_heads, self.dim))


@measures(Values)
class ValuesProbe(LayerSignalProbe[Values]):
    """Measures values, head by head."""

    def attach(self) -> list[RemovableHandle]:
        make = ValueRecorder, self.forward.decoder, self.layer, self.forward.rows.view
        return self.forward.attach(("values", self.layer), lambda: make[0](*make[1:]))

    def read(self) -> Tensor:
        recorder: ValueRecorder = self.forward.recorders["values", self.layer]
        values, rows = recorder.found(recorder.values), self.forward.token_rows(self.tokens, recorder.seen)
        return recorder.seen.take(values.flatten(2), rows).unflatten(-1, values.shape[2:])
