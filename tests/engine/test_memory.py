"""Memory of pruning: no tensor of the full length after the prompt, and never more than the unpruned model."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import feathervlm
import tiny_models as tiny
from feathervlm import methods
from feathervlm.engine.cache.layer import PrunedCacheLayer
from method_cases import METHODS


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are alive, and their maximum."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen or not size or storage.device.type == "meta":  # such tensors have a size and no bytes
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.seen.discard(key)
        self.now -= size


def long_llava():
    """Return a model, and a prompt whose states of full length are large beside everything else."""
    return tiny.llava(), tiny.batch(tiny.prompt(8, seed=1))


METHOD = {
    "feather": methods.Feather(layers=(2, 4), keep=0.4),
    "fastv": methods.FastV(layer=2),
    "fastv-all": methods.FastV(layer=2, over="all"),
    "pyramiddrop": methods.PyramidDrop(layers=(1, 3, 4)),
    "pool": methods.AveragePool(layer=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_cache_has_no_storage_for_dropped_tokens(name):
    llava, inputs = tiny.llava(), tiny.batch(tiny.prompt(1, seed=1))
    with feathervlm.prune(llava, METHODS[name]) as pruning, torch.no_grad():
        past = llava(**inputs, use_cache=True).past_key_values
    text = inputs["input_ids"].shape[1] - tiny.SIDE**2
    for layer, tokens in zip(past.layers, pruning.report.cached_per_layer[0], strict=True):
        for states in (layer.keys, layer.values):
            assert states.shape[-2] == text + tokens
            if isinstance(layer, PrunedCacheLayer):
                assert states.untyped_storage().nbytes() == states.numel() * states.element_size()


@pytest.mark.parametrize("name", METHOD)
def test_nothing_of_full_length_outlives_the_prompt(name):
    llava, inputs = long_llava()
    before = {id(part) for part in gc.get_objects() if type(part) is torch.Tensor}
    with feathervlm.prune(llava, METHOD[name]), torch.no_grad():
        past = llava(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        gc.collect()
        first = min(index for index, layer in enumerate(past.layers) if isinstance(layer, PrunedCacheLayer))
        known = [*llava.parameters(), *llava.buffers(), *inputs.values()]
        known += [states for layer in past.layers for states in (layer.keys, layer.values)]
        known = {tensor.untyped_storage()._cdata for tensor in known}
        width, length = llava.config.text_config.hidden_size, inputs["input_ids"].shape[1]
        new = [part for part in gc.get_objects() if type(part) is torch.Tensor and id(part) not in before]
        storages = [tensor.untyped_storage() for tensor in new if tensor.device.type != "meta"]
        large = [part.nbytes() for part in storages if part._cdata not in known and part.nbytes() > width * length]
    assert first > 0
    assert large == []


def peak(llava, inputs, method, cached):
    pruning = nullcontext() if method is None else feathervlm.prune(llava, method)
    with torch.no_grad(), Live() as live, pruning:
        llava(**inputs, use_cache=cached, logits_to_keep=1)
    return live.peak


@pytest.mark.parametrize("name", METHOD)
def test_the_peak_of_a_prompt_is_lower_than_without_pruning(name):
    llava, inputs = long_llava()
    assert peak(llava, inputs, METHOD[name], True) < peak(llava, inputs, None, True)


@pytest.mark.parametrize("name", METHOD)
def test_without_a_cache_the_keys_that_are_scored_come_on_top_of_the_peak_and_little_else(name):
    llava, inputs = long_llava()
    text, length = llava.config.text_config, inputs["input_ids"].shape[1]
    keys = 4 * text.num_key_value_heads * text.head_dim * length
    bookkeeping = 256 * length  # a few dozen numbers for every token
    assert peak(llava, inputs, METHOD[name], False) <= peak(llava, inputs, None, False) + keys + bookkeeping
