"""A cache of which some layers are pruned: which caches can be, and how their layers change places.

Knows every kind of pruned layer, but not what they store, and nothing of methods.
"""

from collections.abc import Sequence
from typing import Any

from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from feathervlm.core.errors import Unprunable
from feathervlm.engine.cache.dynamic import PrunedDynamicLayer, PrunedSlidingLayer
from feathervlm.engine.cache.layer import HookStatus, PrunedCacheLayer
from feathervlm.engine.cache.static import PrunedStaticLayer

SUPPORTED = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer)


def check_cache(cache: Cache, pruned: Sequence[int]) -> None:
    """Refuse a cache whose layers of these numbers cannot be pruned.

    Raises:
        Unprunable: naming the kind of cache and the remedy.
    """
    if getattr(cache, "offloading", False):
        raise Unprunable("An offloaded cache cannot be pruned; use a plain DynamicCache, which pruning makes smaller.")
    if not isinstance(getattr(cache, "layers", None), list):
        raise Unprunable(f"A {type(cache).__name__} has no layers that could be pruned; use a DynamicCache.")
    replicated = getattr(cache, "layer_class_to_replicate", None)
    present = [cache.layers[index] for index in pruned if index < len(cache.layers)]
    kinds = [type(layer) for layer in present] + ([replicated] if replicated is not None else [])
    for kind in kinds:
        if kind not in SUPPORTED and not issubclass(kind, PrunedCacheLayer):
            raise Unprunable(
                f"A cache with {kind.__name__} cannot be pruned (quantized, indexed and sliding static caches are not "
                "supported); use a DynamicCache, or a StaticCache on a model without sliding windows."
            )
    for layer in present:
        if isinstance(layer, StaticLayer) and layer.is_initialized and bool(layer.get_seq_length()):
            raise Unprunable("A static cache that already holds tokens cannot take a new image; use a DynamicCache.")


def pruned_layer(cache: Cache, layer: int, attachment: HookStatus, dropped: int, foreseen: bool) -> PrunedCacheLayer:
    """The pruned form of `cache.layers[layer]`, put in its place if it is not there yet.

    Args:
        cache: a cache that `check_cache` has passed.
        layer: its index.
        attachment: what the layer depends on.
        dropped: slots that a static layer need not have.
        foreseen: whether that number follows from shapes alone.
    """
    replicated = cache.layer_class_to_replicate
    while replicated is not None and len(cache.layers) <= layer:  # a DynamicCache without a config grows on demand
        cache.layers.append(replicated())
    current: Any = cache.layers[layer]
    if isinstance(current, PrunedCacheLayer):
        current.attachment.check()
        return current
    if type(current) is StaticLayer:
        replacement: Any = PrunedStaticLayer(attachment, current.max_cache_len, dropped, foreseen)
    elif type(current) is DynamicSlidingWindowLayer:
        replacement = PrunedSlidingLayer(attachment, current)
    else:
        replacement = PrunedDynamicLayer(attachment, current)
    cache.layers[layer] = replacement
    return replacement


def restore_static(cache: Cache) -> None:
    """Give emptied static layers back their full capacity, for another prompt."""
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, PrunedStaticLayer) and layer.prefix is None:
            cache.layers[index] = StaticLayer(max_cache_len=layer.logical_capacity)


def pruned_layers(cache: object) -> dict[int, PrunedCacheLayer]:
    """The layers of `cache` that are pruned and hold something, by their index."""
    layers = enumerate(getattr(cache, "layers", ()))
    return {index: layer for index, layer in layers if isinstance(layer, PrunedCacheLayer) and layer.prefix is not None}
