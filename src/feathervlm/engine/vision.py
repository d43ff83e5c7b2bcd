"""Attention inside the vision encoder: how much its patches, or its [CLS] token, look at each patch.

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

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder")
CLASS_TOKENS = ("class_embedding", "cls_token")
ROWS = 512
"""Query rows compared at a time, which bounds the memory."""


class EncoderTap:
    """Looks at some attention layers of the vision encoder while it runs.

    Args:
        base: the model without its head.
        layers: which, counted from the first (0) or from the last (-1).

    Raises:
        Unprunable: if the encoder or a layer is not found.
    """

    def __init__(self, base: nn.Module, layers: Sequence[int]) -> None:
        tower = next((found for name in TOWERS if (found := getattr(base, name, None)) is not None), None)
        if tower is None:
            raise Unprunable(
                f"{type(base).__name__} has no vision encoder under a known name ({', '.join(TOWERS)}); choose a "
                "method that does not score with its attention."
            )
        modules: list[Any] = [
            part for part in tower.modules() if "Attention" in type(part).__name__ and hasattr(part, "config")
        ]
        if not modules or any(not -len(modules) <= layer < len(modules) for layer in layers):
            raise Unprunable(
                f"The vision encoder of {type(base).__name__} has {len(modules)} attention layers that can be looked "
                f"at; layers {list(layers)} were asked for."
            )
        self.modules = {layer: modules[layer] for layer in layers}
        self.first = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in tower.named_parameters())
        self.found: dict[int, list[Tensor]] = {}
        self.name = f"feathervlm_{id(self)}"

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look while this lasts."""
        self.found = {layer: [] for layer in self.modules}
        configs = {layer: module.config for layer, module in self.modules.items()}
        AttentionInterface.register(self.name, self._look)
        try:
            for module in self.modules.values():
                lent = copy.copy(module.config)
                lent._attn_implementation = self.name
                module.config = lent
            self.usual = {id(module): configs[layer]._attn_implementation for layer, module in self.modules.items()}
            yield
        finally:
            for layer, module in self.modules.items():
                module.config = configs[layer]
            ALL_ATTENTION_FUNCTIONS._global_mapping.pop(self.name, None)

    def scores(self) -> dict[int, Tensor]:
        """Per layer the attention that each patch gets, mean over heads: float32, laid out as the encoder's states.

        From [CLS] where the encoder has one, else the mean over all patches that look.
        """
        return {layer: torch.cat(parts, -1) for layer, parts in self.found.items()}

    def _look(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        with torch.no_grad():
            seen = received(query, key, attention_mask, scaling, self.first)
        for layer, known in self.modules.items():  # one layer may be asked for from both ends
            if known is module:
                self.found[layer].append(seen)
        return self._run(self.usual[id(module)], module)(module, query, key, value, attention_mask, **kwargs)

    @staticmethod
    def _run(usual: str, module: Any) -> Any:
        if "flash" in usual:
            usual = "sdpa"  # the module has already made the inputs of an attention that is not flash
        eager: Any = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
        return ALL_ATTENTION_FUNCTIONS.get_interface(usual, eager)


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
