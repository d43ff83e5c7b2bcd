"""What happens inside a vision encoder of vLLM: queries and keys of its attention, and what enters the projector."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

from feathervlm.core.signals import EncoderSignal, Signal
from feathervlm.engine.probes.registry import probe_class
from feathervlm.engine.vision.probe import has_class_token


def gather_heads(states: Tensor) -> Tensor:
    """Return the heads of all ranks side by side, along the last dimension."""
    if get_tensor_model_parallel_world_size() == 1:
        return states
    return tensor_model_parallel_all_gather(states)  # type: ignore[no-any-return]  # vLLM is not typed here


class TowerRecorder:
    """Records the signals of one run of a vision encoder.

    An encoder takes pictures of one size, (pictures, patches, dim), or pictures in a row, (1, patches, dim), and then
    the places where attention begins anew.

    Args:
        tower: The vision encoder.
        projector: The module that its features go through.

    Attributes:
        vision: Features that entered the projector; None before the run.
        inside: Signals from inside the encoder, (pictures, patches) or (pictures, patches, dim).
    """

    def __init__(self, tower: nn.Module, projector: nn.Module) -> None:
        self.projector = projector
        self.attentions: list[Any] = [part for part in tower.modules() if type(part).__name__ == "MMEncoderAttention"]
        self.has_class = has_class_token(tower)
        self.vision: Tensor | None = None
        self.inside: dict[EncoderSignal, Tensor] = {}

    @contextmanager
    def recording(self, signals: Iterable[Signal], depth: int) -> Iterator[None]:
        """Record while this lasts.

        Args:
            signals: The signals to record.
            depth: Number of layers of the vision encoder, those that do not run included.
        """
        self.vision, self.inside = None, {}
        handles = [self.projector.register_forward_pre_hook(self._enter)]
        for signal in dict.fromkeys(signals):
            layer = signal.encoder_layer(depth)
            if layer is not None:
                attention = self.attentions[layer]

                def record(module: Any, args: Any, kwargs: Any, signal: Any = signal) -> None:
                    self._record(signal, module, args, kwargs)

                handles.append(attention.register_forward_pre_hook(record, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.vision = args[0]

    def _record(self, signal: Any, module: Any, args: Any, kwargs: Any) -> None:
        query, key = args[:2] if args else (kwargs["query"], kwargs["key"])
        heads = [gather_heads(states.flatten(2)).unflatten(-1, (-1, module.head_size)) for states in (query, key)]
        starts = kwargs.get("cu_seqlens")
        lengths = [heads[0].shape[1]] if starts is None else starts.diff().tolist()
        with torch.no_grad():
            parts = [
                probe_class(signal).measure(
                    signal, query.transpose(1, 2), key.transpose(1, 2), None, module.scale, self.has_class
                )
                for query, key in zip(*(states.split(lengths, 1) for states in heads), strict=True)
            ]
            self.inside[signal] = torch.cat(parts, 1)
