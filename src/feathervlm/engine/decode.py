"""A forward that continues a pruned cache without new images: a decoding step, or another turn of text.

Most decoding steps need no hooks: without padding there is no mask to gather, and positions are right already.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feathervlm.engine.cache.layer import PrunedCacheLayer
from feathervlm.engine.cache.static import PrunedStaticLayer
from feathervlm.engine.cache.support import pruned_layers
from feathervlm.engine.decoder import DecoderView, line_ids
from feathervlm.engine.masks import pruned_mask


class Decode:
    """Hooks that give pruned layers their mask, and renumbered positions where a method renumbers them.

    Args:
        decoder: View of the decoder.
        starts: The layer of every stage, ascending.
        lasting: Whether the hooks stay over many forwards, for static caches and compiled graphs; layers then share no
            tensors, which a compiler arranges by itself.
    """

    def __init__(self, decoder: DecoderView, starts: list[int], *, lasting: bool) -> None:
        self.decoder, self.starts, self.lasting = decoder, starts, lasting
        self.memo: dict[tuple[Any, ...], Any] = {}
        self.handles: list[RemovableHandle] = []

    def install(self, cache: Any) -> "Decode":
        """Register the hooks on the layers that are pruned in `cache`."""
        for index in pruned_layers(cache):
            hook = partial(self.enter, index, bisect_right(self.starts, index))
            self.handles.append(self.decoder.layers[index].register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def enter(self, index: int, stage: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments for a pruned layer; the hook before it.

        Args:
            index: Index of the layer.
            stage: Number of stages before it.
            module: The layer.
            args: Its positional arguments.
            kwargs: Its other arguments.
        """
        cache = kwargs.get("past_key_values")
        layer = cache.layers[index] if cache is not None and index < len(cache.layers) else None
        if not isinstance(layer, PrunedCacheLayer) or layer.slot_map is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        changed = {}
        if kwargs.get("attention_mask") is not None or layer.slot_map.valid is not None:
            key = ("mask", stage, self.decoder.layer_types[index])
            changed["attention_mask"] = self._once(
                key, lambda: self._mask(index, layer, kwargs["attention_mask"], hidden)
            )
        if layer.slot_map.shift is not None:
            shift = layer.slot_map.shift
            tables = self._once(("tables", stage), lambda: self._tables(shift, kwargs.get("position_ids"), hidden))
            changed["position_embeddings"] = tables
        return args, {**kwargs, **changed}

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if self.lasting:
            return make()
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def _mask(self, index: int, layer: Any, mask: Any, hidden: Tensor) -> Any:
        new = hidden.shape[-2]
        columns, valid = layer.columns(new, hidden.device)
        columns = columns.expand(hidden.shape[0], -1)
        if isinstance(layer, PrunedStaticLayer):
            query, offset = columns[:, -new:], 0  # read only where the mask is None
        else:
            past = layer.get_seq_length()
            query = torch.arange(past, past + new, device=hidden.device)[None]
            offset = layer.get_mask_sizes(new)[1]
        attention, causal = self.decoder.attention, self.decoder.is_causal(index)
        return pruned_mask(mask, None, query, columns, valid, offset, attention, hidden.dtype, causal)

    def _tables(self, shift: Tensor, ids: Any, hidden: Tensor) -> Any:
        ids = line_ids(ids)
        return self.decoder.decoder.rotary_emb(hidden, position_ids=ids - shift.to(ids.device))


def needs_hooks(cache: Any, call_mask: Any, new: int, decoder: DecoderView) -> bool:
    """Return whether a forward of `new` tokens on a pruned cache needs hooks.

    One new token without padding attends to all stored slots, so SDPA and flash attention get no mask at all; any other
    case (a sliding window, whatever cache layer stores it, included) has a mask of the original length.
    """
    if new > 1 or call_mask is not None or decoder.attention == "eager":
        return True
    return any(
        decoder.layer_types[index] != "full_attention" or layer.slot_map is None or not layer.slot_map.plain
        for index, layer in pruned_layers(cache).items()
    )
