"""Queries and keys inside the vision encoder, recorded while it runs.

They are read as the encoder's own attention gets them, rotated and normed, by replacing the attention function of a
layer with one that passes them to the probe of each signal and then calls the original. Only the rows that a signal
needs are computed twice, and no layer is switched to eager attention. Signals have the layout of the encoder's states.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import EncoderMeasure, EncoderSignal, encoder_layer_index
from feathervlm.engine.probes.registry import probe_class

ENCODERS = ("vision_tower", "visual", "vision_model", "vision_encoder")
CLASS_TOKENS = ("class_embedding", "cls_token")
ROWS = 512
"""Number of query rows compared at a time, which bounds the memory."""


def find_encoder(base: nn.Module) -> nn.Module:
    """Return the vision encoder of a model without its head.

    Raises:
        Unprunable: If there is none under a known name.
    """
    encoders = (getattr(base, name, None) for name in ENCODERS)
    encoder = next((encoder for encoder in encoders if encoder is not None), None)
    if encoder is None:
        raise Unprunable(
            f"{type(base).__name__} has no vision encoder under a known name ({', '.join(ENCODERS)}); choose a "
            "method that does not look into it."
        )
    return encoder


def attention_modules(encoder: nn.Module) -> dict[str, Any]:
    """Return the attention modules of an encoder whose function can be replaced, by name and in order."""
    return {
        path: part
        for path, part in encoder.named_modules()
        if "Attention" in (name := type(part).__name__) and "Pooling" not in name and hasattr(part, "config")
    }


def has_class_token(encoder: nn.Module) -> bool:
    """Return whether an encoder has a [CLS] token."""
    return any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in encoder.named_parameters())


@contextmanager
def replaced_attention(modules: Iterable[Any], attention: Callable[..., Any]) -> Iterator[None]:
    """Replace the attention function of modules inside a `with` block.

    Args:
        modules: Some of `attention_modules`; one may occur several times.
        attention: Replacement, called with the original function and the arguments of a call of that.
    """
    by_id = {id(module): module for module in modules}
    configs = {key: module.config for key, module in by_id.items()}
    implementations = {key: config._attn_implementation for key, config in configs.items()}
    name = f"feathervlm_{id(configs)}"

    def instead(module: Any, *args: Any, **kwargs: Any) -> Any:
        return attention(_function(implementations[id(module)], module), module, *args, **kwargs)

    AttentionInterface.register(name, instead)
    try:
        for module in by_id.values():
            own = copy.copy(module.config)
            own._attn_implementation = name
            module.config = own
        yield
    finally:
        for key, module in by_id.items():
            module.config = configs[key]
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)


def _function(implementation: str, module: Any) -> Any:
    if "flash" in implementation:
        implementation = "sdpa"  # the module has already made the inputs of an attention that is not flash
    eager: Any = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)


class EncoderProbe:
    """Records signals in attention layers of the vision encoder while it runs.

    Args:
        base: The model without its head.
        signals: The signals to record.

    Raises:
        Unprunable: If the encoder or a layer is not found.
    """

    def __init__(self, base: nn.Module, signals: Sequence[EncoderMeasure]) -> None:
        encoder = find_encoder(base)
        modules = list(attention_modules(encoder).values())
        depth, layers = len(modules), [signal.layer for signal in signals]
        if not modules or any(not -depth <= layer < depth for layer in layers):
            raise Unprunable(
                f"The vision encoder of {type(base).__name__} has {depth} attention layers that can be hooked; "
                f"choose layers among these instead of {layers}."
            )
        self.modules = {signal: modules[encoder_layer_index(signal.layer, depth)] for signal in signals}
        self.has_class = has_class_token(encoder)
        self._parts: dict[EncoderSignal, list[Tensor]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while this lasts."""
        self._parts = {signal: [] for signal in self.modules}
        with replaced_attention(self.modules.values(), self._record):
            yield

    def recorded(self) -> dict[EncoderSignal, Tensor]:
        """Return every signal but those of layers that the encoder leaves out.

        Returns:
            float32 (batch, patches), or (batch, patches, dim) for keys, with the layout of the encoder's states.
        """
        return {signal: torch.cat(parts, 1) for signal, parts in self._parts.items() if parts}

    def _record(
        self, usual: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kw: Any
    ) -> Any:
        scaling = kw.get("scaling") or query.shape[-1] ** -0.5
        with torch.no_grad():
            for signal, known in self.modules.items():
                if known is module:
                    states = probe_class(signal).measure(signal, query, key, attention_mask, scaling, self.has_class)
                    self._parts[signal].append(states)
        return usual(module, query, key, value, attention_mask, **kw)


def undivided(heads: Tensor) -> Tensor:
    """Return all heads of (batch, heads, tokens, dim) as a single one: (batch, 1, tokens, heads * dim)."""
    return heads.transpose(1, 2).flatten(2)[:, None]


def received(query: Tensor, key: Tensor, mask: Any, scaling: float, from_first: bool) -> Tensor:
    """Return the attention that every key receives, the mean over heads and queries: (batch, keys) float32.

    Args:
        query: Queries of shape (batch, heads, queries, dim).
        key: Keys of shape (batch, heads or groups of heads, keys, dim).
        mask: None, bool or additive, broadcasting to (batch, heads, queries, keys).
        scaling: Factor of the products of queries and keys.
        from_first: Whether only the first query counts ([CLS]).
    """
    key = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)
    asking = query[:, :, :1] if from_first else query
    total = torch.zeros(key.shape[0], key.shape[2], device=key.device)
    for start in range(0, asking.shape[2], ROWS):
        rows = asking[:, :, start : start + ROWS].float()
        logits = rows @ key.transpose(-1, -2) * scaling
        if isinstance(mask, Tensor):
            part = mask[..., start : start + ROWS, :] if mask.shape[-2] > 1 else mask
            part = part[..., : logits.shape[2], :]
            logits = logits.masked_fill(~part, float("-inf")) if part.dtype == torch.bool else logits + part
        total += logits.softmax(-1).nan_to_num(0).mean(1).sum(1)
    return total / asking.shape[2]
