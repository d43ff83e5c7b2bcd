"""Inside the vision encoder: how much its patches, or its [CLS] token, look at each patch, and the keys of each.

Queries and keys are taken as the encoder's own attention gets them, rotated and normed, by lending one layer another
attention function that looks at them and then calls the usual one. Nothing is computed twice but the rows asked for,
and no layer is switched to eager attention. Knows no geometry: scores lie as the encoder's states do.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from feathervlm.core.errors import Unprunable
from feathervlm.core.signals import EncoderKeys, EncoderSignal

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder")
CLASS_TOKENS = ("class_embedding", "cls_token")
ROWS = 512
"""Query rows compared at a time, which bounds the memory."""


class EncoderTap:
    """Looks at some attention layers of the vision encoder while it runs.

    Args:
        base: the model without its head.
        signals: what to measure in them.

    Raises:
        Unprunable: if the encoder or a layer is not found.
    """

    def __init__(self, base: nn.Module, signals: Sequence[EncoderSignal]) -> None:
        tower = next((found for name in TOWERS if (found := getattr(base, name, None)) is not None), None)
        if tower is None:
            raise Unprunable(
                f"{type(base).__name__} has no vision encoder under a known name ({', '.join(TOWERS)}); choose a "
                "method that does not score with its attention."
            )
        modules: list[Any] = [
            part
            for part in tower.modules()
            if "Attention" in (name := type(part).__name__) and "Pooling" not in name and hasattr(part, "config")
        ]
        depth, layers = len(modules), [signal.layer for signal in signals]
        if not modules or any(not -depth <= layer < depth for layer in layers):
            raise Unprunable(
                f"The vision encoder of {type(base).__name__} has {depth} attention layers that can be looked "
                f"at; layers {layers} were asked for."
            )
        self.modules = {signal: modules[_index(signal.layer, depth)] for signal in signals}
        self.first = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in tower.named_parameters())
        self.found: dict[EncoderSignal, list[Tensor]] = {}
        self.name = f"feathervlm_{id(self)}"

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look while this lasts."""
        self.found = {signal: [] for signal in self.modules}
        modules = {id(module): module for module in self.modules.values()}  # several may be asked of one
        configs = {key: module.config for key, module in modules.items()}
        self.usual = {key: config._attn_implementation for key, config in configs.items()}
        AttentionInterface.register(self.name, self._look)
        try:
            for module in modules.values():
                lent = copy.copy(module.config)
                lent._attn_implementation = self.name
                module.config = lent
            yield
        finally:
            for key, module in modules.items():
                module.config = configs[key]
            ALL_ATTENTION_FUNCTIONS._global_mapping.pop(self.name, None)

    def seen(self) -> dict[EncoderSignal, Tensor]:
        """Every signal, float32, laid out as the encoder's states: (batch, patches), keys (batch, patches, dim).

        Not those of layers that the encoder leaves out.
        """
        return {signal: torch.cat(parts, 1) for signal, parts in self.found.items() if parts}

    def _look(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        with torch.no_grad():
            for signal, known in self.modules.items():
                if known is module:
                    self.found[signal].append(self._measure(signal, query, key, attention_mask, scaling))
        return self._run(self.usual[id(module)], module)(module, query, key, value, attention_mask, **kwargs)

    def _measure(self, signal: EncoderSignal, query: Tensor, key: Tensor, mask: Any, scaling: float) -> Tensor:
        if isinstance(signal, EncoderKeys):
            return (undivided(key) if signal.heads == "joint" else key).float().mean(1)
        if signal.heads == "joint":
            query, key = undivided(query), undivided(key.repeat_interleave(query.shape[1] // key.shape[1], 1))
            scaling = query.shape[-1] ** -0.5
        return received(query, key, mask, scaling, self.first and signal.source == "cls")

    @staticmethod
    def _run(usual: str, module: Any) -> Any:
        if "flash" in usual:
            usual = "sdpa"  # the module has already made the inputs of an attention that is not flash
        eager: Any = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
        return ALL_ATTENTION_FUNCTIONS.get_interface(usual, eager)


def _index(layer: int | float, depth: int) -> int:
    """The layer that a fraction of the depth means, rounded to the nearest."""
    return min(int(layer * depth + 0.5), depth - 1) if isinstance(layer, float) else layer


def undivided(heads: Tensor) -> Tensor:
    """All heads as a single one: (batch, 1, tokens, heads * dim) of (batch, heads, tokens, dim)."""
    return heads.transpose(1, 2).flatten(2)[:, None]


def received(query: Tensor, key: Tensor, mask: Any, scaling: float, from_first: bool) -> Tensor:
    """Attention that every key gets, mean over heads and over the asking rows: (batch, keys) float32.

    Args:
        query: (batch, heads, queries, dim).
        key: (batch, heads or groups of heads, keys, dim).
        mask: None, bool or additive, broadcasting to (batch, heads, queries, keys).
        scaling: of the products.
        from_first: only the first row asks ([CLS]).
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
