"""Which caches can be pruned, and the exchange of their layers for pruned ones and back."""

from collections.abc import Sequence
from typing import Any

from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from feathervlm.core.errors import Unprunable
from feathervlm.engine.cache.dynamic import PrunedDynamicLayer, PrunedSlidingLayer
from feathervlm.engine.cache.layer import HookStatus, PrunedCacheLayer
from feathervlm.engine.cache.static import PrunedStaticLayer

SUPPORTED = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer)


def check_cache(cache: Cache, pruned: Sequence[int]) -> None:
    """Check that the layers of a cache can be pruned.

    Args:
        cache: The cache.
        pruned: Indices of the layers to prune.

    Raises:
        Unprunable: If one of them cannot.
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


def pruned_layer(cache: Cache, layer: int, hook_status: HookStatus, dropped: int, size_known: bool) -> PrunedCacheLayer:
    """Return `cache.layers[layer]`, exchanged for its pruned form if it is not pruned yet.

    Args:
        cache: A cache that has passed `check_cache`.
        layer: Index of the layer.
        hook_status: Status that the layer depends on.
        dropped: Number of slots that a static layer can do without.
        size_known: Whether that number follows from shapes alone.
    """
    replicated = cache.layer_class_to_replicate
    while replicated is not None and len(cache.layers) <= layer:  # a DynamicCache without a config grows on demand
        cache.layers.append(replicated())
    current: Any = cache.layers[layer]
    if isinstance(current, PrunedCacheLayer):
        current.hook_status.check()
        return current
    if type(current) is StaticLayer:
        replacement: Any = PrunedStaticLayer(hook_status, current.max_cache_len, dropped, size_known)
    elif type(current) is DynamicSlidingWindowLayer:
        replacement = PrunedSlidingLayer(hook_status, current)
    else:
        replacement = PrunedDynamicLayer(hook_status, current)
    cache.layers[layer] = replacement
    return replacement


def restore_static(cache: Cache) -> None:
    """Exchange emptied static layers for layers of full capacity, for another prompt."""
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, PrunedStaticLayer) and layer.slot_map is None:
            cache.layers[index] = StaticLayer(max_cache_len=layer.logical_capacity)


def pruned_layers(cache: object) -> dict[int, PrunedCacheLayer]:
    """Return the layers of a cache that are pruned and not empty, by their index."""
    layers = enumerate(getattr(cache, "layers", ()))
    return {
        index: layer for index, layer in layers if isinstance(layer, PrunedCacheLayer) and layer.slot_map is not None
    }
