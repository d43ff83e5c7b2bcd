"""Inside the vision encoder: how much its patches, or its [CLS] token, look at each patch, and the keys of each.

Queries and keys are taken as the encoder's own attention gets them, rotated and normed, by lending one layer another
attention function that looks at them and then calls the usual one. Nothing is computed twice but the rows asked for,
and no layer is switched to eager attention. Knows no geometry: scores lie as the encoder's states do.
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

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder")
CLASS_TOKENS = ("class_embedding", "cls_token")
ROWS = 512
"""Query rows compared at a time, which bounds the memory."""


def find_encoder(base: nn.Module) -> nn.Module:
    """The vision encoder of a model without its head.

    Raises:
        Unprunable: if it has none under a known name.
    """
    tower = next((found for name in TOWERS if (found := getattr(base, name, None)) is not None), None)
    if tower is None:
        raise Unprunable(
            f"{type(base).__name__} has no vision encoder under a known name ({', '.join(TOWERS)}); choose a "
            "method that does not look into it."
        )
    return tower


def attention_modules(encoder: nn.Module) -> dict[str, Any]:
    """The attention modules of an encoder that can be lent another function, by name and in order."""
    return {
        path: part
        for path, part in encoder.named_modules()
        if "Attention" in (name := type(part).__name__) and "Pooling" not in name and hasattr(part, "config")
    }


def has_class_token(encoder: nn.Module) -> bool:
    """Whether an encoder has a [CLS] token."""
    return any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in encoder.named_parameters())


@contextmanager
def lent(modules: Iterable[Any], attention: Callable[..., Any]) -> Iterator[None]:
    """Give attention modules another attention function while this lasts.

    Args:
        modules: some of `attention_modules`; one may come several times.
        attention: is called with the function it stands in for, and what that would have been.
    """
    by_id = {id(module): module for module in modules}
    configs = {key: module.config for key, module in by_id.items()}
    usual = {key: config._attn_implementation for key, config in configs.items()}
    name = f"feathervlm_{id(configs)}"

    def instead(module: Any, *args: Any, **kwargs: Any) -> Any:
        return attention(_function(usual[id(module)], module), module, *args, **kwargs)

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


def _function(usual: str, module: Any) -> Any:
    if "flash" in usual:
        usual = "sdpa"  # the module has already made the inputs of an attention that is not flash
    eager: Any = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    return ALL_ATTENTION_FUNCTIONS.get_interface(usual, eager)


class EncoderProbe:
    """Looks at some attention layers of the vision encoder while it runs.

    Args:
        base: the model without its head.
        signals: what to measure in them.

    Raises:
        Unprunable: if the encoder or a layer is not found.
    """

    def __init__(self, base: nn.Module, signals: Sequence[EncoderMeasure]) -> None:
        tower = find_encoder(base)
        modules = list(attention_modules(tower).values())
        depth, layers = len(modules), [signal.layer for signal in signals]
        if not modules or any(not -depth <= layer < depth for layer in layers):
            raise Unprunable(
                f"The vision encoder of {type(base).__name__} has {depth} attention layers that can be looked "
                f"at; layers {layers} were asked for."
            )
        self.modules = {signal: modules[encoder_layer_index(signal.layer, depth)] for signal in signals}
        self.first = has_class_token(tower)
        self._parts: dict[EncoderSignal, list[Tensor]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while this lasts."""
        self._parts = {signal: [] for signal in self.modules}
        with lent(self.modules.values(), self._record):
            yield

    def recorded(self) -> dict[EncoderSignal, Tensor]:
        """Every signal, float32, laid out as the encoder's states: (batch, patches), keys (batch, patches, dim).

        Not those of layers that the encoder leaves out.
        """
        return {signal: torch.cat(parts, 1) for signal, parts in self._parts.items() if parts}

    def _record(
        self, usual: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kw: Any
    ) -> Any:
        scaling = kw.get("scaling") or query.shape[-1] ** -0.5
        with torch.no_grad():
            for signal, known in self.modules.items():
                if known is module:
                    states = probe_class(signal).measure(signal, query, key, attention_mask, scaling, self.first)
                    self._parts[signal].append(states)
        return usual(module, query, key, value, attention_mask, **kw)


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
