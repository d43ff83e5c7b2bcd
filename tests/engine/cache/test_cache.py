"""Pruned cache layers report the lengths of the original sequence while they store the kept tokens only."""

import copy
from functools import cache, partial

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, methods
from feathervlm.engine.cache.dynamic import PrunedDynamicLayer, PrunedSlidingLayer
from feathervlm.engine.cache.layer import HookStatus, SlotMap
from feathervlm.engine.cache.static import PrunedStaticLayer
from feathervlm.engine.cache.support import restore_static
from laws import TOLERANCE, frozen, generate

FEATHER = methods.Feather(layers=(2, 4), keep=0.4)
WINDOW, BATCH = 6, 3


@cache
def model(text="llama", attention="sdpa"):
    return tiny.llava(text, attention=attention)


def states(positions):
    """Return keys and values (batch, 1, n, 1) whose numbers are the positions that they stand for."""
    keys = positions[:, None, :, None].double()
    return keys, -keys


def make_prefix(generator, logical, ragged=False):
    """Return slots for some of `logical` positions, the last two of every sample among them."""
    kept = max(logical // 2, 2)
    index = torch.stack([torch.randperm(logical - 2, generator=generator)[: kept - 2].sort().values] * BATCH)
    index = torch.cat([index, torch.arange(logical - 2, logical).expand(BATCH, -1)], 1)
    valid = None
    if ragged:
        valid = torch.ones(BATCH, kept, dtype=torch.bool)
        valid[1, 0] = False
    return SlotMap(index, valid, logical)


def filled(kind, seed, ragged=False, logical=15):
    """Return a pruned layer after its prefill, and an unpruned one of the same history."""
    generator = torch.Generator().manual_seed(seed)
    plain = DynamicSlidingWindowLayer(WINDOW) if kind is PrunedSlidingLayer else DynamicLayer()
    layer = kind(HookStatus(), copy.deepcopy(plain))
    prefix = make_prefix(generator, logical, ragged)
    layer.pending = prefix
    layer.update(*states(prefix.index))
    plain.update(*states(torch.arange(logical).expand(BATCH, -1)))
    return layer, plain, generator


def stands_for(layer):
    """Compare the positions in the stored keys with those that `columns` returns."""
    index, valid = layer.columns(0, torch.device("cpu"))
    stored = layer.keys[:, 0, :, 0].long()
    assert torch.equal(index.expand_as(stored), stored)
    assert torch.equal(layer.values[:, 0, :, 0].long(), -stored)
    assert valid is None or valid.shape == stored.shape
    return stored


def agree(layer, plain):
    assert layer.get_seq_length() == plain.get_seq_length()
    for new in (1, 4):
        assert layer.get_mask_sizes(new) == plain.get_mask_sizes(new)
        assert layer.columns(new, torch.device("cpu"))[0].shape[1] == layer.keys.shape[-2] + new
    stands_for(layer)


def append(count, *layers):
    batch = layers[0].keys.shape[0]
    for layer in layers:
        start = int(layer.get_seq_length())
        layer.update(*states(torch.arange(start, start + count).expand(batch, -1)))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", [PrunedDynamicLayer, PrunedSlidingLayer])
@pytest.mark.parametrize("seed", range(5))
def test_any_history_keeps_lengths_and_columns_right(seed, kind, ragged):
    layer, plain, generator = filled(kind, seed, ragged)
    agree(layer, plain)
    for _ in range(15):
        samples = layer.keys.shape[0]
        action = int(torch.randint(5, (), generator=generator))
        if action <= 1:
            append(action * 3 + 1, layer, plain)
        elif action == 2:
            order = torch.randint(samples, (samples,), generator=generator)
            layer.reorder_cache(order)
            plain.reorder_cache(order)
        elif action == 3 and samples < 7:
            layer.batch_repeat_interleave(2)
            plain.batch_repeat_interleave(2)
        elif samples > 1:
            chosen = torch.randperm(samples, generator=generator)[: samples // 2 + 1]
            layer.batch_select_indices(chosen)
            plain.batch_select_indices(chosen)
        agree(layer, plain)


def test_batch_operations_carry_validity_and_shift_along():
    layer, _, _ = filled(PrunedDynamicLayer, 0, ragged=True)
    shift = torch.arange(BATCH)[:, None]
    layer.slot_map = SlotMap(layer.slot_map.index, layer.slot_map.valid, layer.slot_map.logical, shift)
    layer.reorder_cache(torch.tensor([1, 1, 0]))
    assert layer.slot_map.valid[:, 0].tolist() == [False, False, True]
    assert layer.slot_map.shift[:, 0].tolist() == [1, 1, 0]
    layer.batch_select_indices(torch.tensor([0, 2]))
    layer.batch_repeat_interleave(2)
    assert layer.slot_map.valid[:, 0].tolist() == [False, False, True, True]
    assert layer.slot_map.shift[:, 0].tolist() == [1, 1, 0, 0]


def test_crop_takes_back_text_but_not_dropped_tokens():
    for seed in range(5):
        layer, plain, _ = filled(PrunedDynamicLayer, seed)
        append(4, layer, plain)
        for count in (0, 3, 2, 1):  # the last two reach into the text at the end of the prompt, up to its first token
            layer.crop(-count)
            plain.crop(-count)
            agree(layer, plain)
        before = layer.keys.shape[-2]
        with pytest.raises(PruningError, match="Cannot remove 9 tokens"):
            layer.crop(-9)
        assert layer.keys.shape[-2] == before
        append(2, layer, plain)
        agree(layer, plain)


def test_crop_refuses_filler_slots_and_positive_counts():
    layer, _, _ = filled(PrunedDynamicLayer, 0, ragged=True)
    layer.slot_map.valid[1, -1] = False
    with pytest.raises(PruningError, match="Cannot remove 1 tokens"):
        layer.crop(-1)
    with pytest.raises(PruningError, match=r"crop\(3\)"):
        layer.crop(3)


def test_a_recording_window_can_be_cropped_like_the_unpruned_one():
    for seed in range(5):
        layer, plain, _ = filled(PrunedSlidingLayer, seed, logical=20)
        for one in (layer, plain):
            one.activate_past_recording()
        for new, taken in ((4, 3), (1, 0), (5, 5), (3, 2)):
            append(new, layer, plain)
            layer.crop(-taken)
            plain.crop(-taken)
            agree(layer, plain)
            assert layer.keys.shape[-2] <= WINDOW - 1


def test_a_window_that_forgot_cannot_be_cropped():
    layer, _, _ = filled(PrunedSlidingLayer, 0, logical=20)
    with pytest.raises(PruningError, match="left this sliding window"):
        layer.crop(-1)


def test_windows_keep_at_least_what_the_unpruned_window_sees():
    for seed in range(5):
        layer, plain, _ = filled(PrunedSlidingLayer, seed, logical=20)
        history = make_prefix(torch.Generator().manual_seed(seed), 20).index[0].tolist()
        for position in range(20, 40):
            visible = set(stands_for(layer)[0].tolist())
            assert len(visible) <= WINDOW - 1
            assert {old for old in history if old > position - WINDOW} <= visible
            append(1, layer, plain)
            history.append(position)
            agree(layer, plain)


def test_ragged_windows_are_not_trimmed():
    layer, plain, _ = filled(PrunedSlidingLayer, 0, ragged=True, logical=20)
    before = layer.keys.shape[-2]
    append(9, layer, plain)
    assert layer.keys.shape[-2] == before + 9


def test_a_window_that_slid_before_it_was_pruned_stands_for_its_last_positions():
    plain = DynamicSlidingWindowLayer(WINDOW)
    plain.update(*states(torch.arange(17).expand(BATCH, -1)))
    layer = PrunedSlidingLayer(HookStatus(), copy.deepcopy(plain))
    agree(layer, plain)
    append(3, layer, plain)
    agree(layer, plain)


@pytest.mark.parametrize("kind", [PrunedDynamicLayer, PrunedSlidingLayer])
def test_reset_forgets_the_pruning(kind):
    layer, plain, _ = filled(kind, 0, logical=20)
    layer.reset()
    assert (layer.get_seq_length(), layer.slot_map, layer.pending, layer.trimmed) == (0, None, None, 0)
    plain = type(plain)(WINDOW) if kind is PrunedSlidingLayer else DynamicLayer()
    for one in (layer, plain):
        one.update(*states(torch.arange(4).expand(BATCH, -1)))
    agree(layer, plain)


def test_static_layers_report_the_original_capacity_and_length():
    prefix = make_prefix(torch.Generator().manual_seed(0), 15)
    dropped = prefix.logical - prefix.index.shape[1]
    layer, plain = PrunedStaticLayer(HookStatus(), 30, dropped, size_known=True), StaticLayer(30)
    layer.pending = prefix
    layer.update(*states(prefix.index))
    plain.update(*states(torch.arange(15).expand(BATCH, -1)))
    for _ in range(15):
        assert int(layer.get_seq_length()) == int(plain.get_seq_length())
        assert layer.get_mask_sizes(1) == plain.get_mask_sizes(1)
        assert layer.get_max_length() == plain.get_max_length() == 30
        stored = layer.keys[0, 0, :, 0].long()
        filled_slots = int(layer.cumulative_length)
        assert layer.columns(1, torch.device("cpu"))[0][0, :filled_slots].tolist() == stored[:filled_slots].tolist()
        append(1, layer, plain)
    assert int(layer.cumulative_length) == layer.keys.shape[-2]


def test_emptied_static_layers_get_their_capacity_back():
    past = DynamicCache()
    layer = PrunedStaticLayer(HookStatus(), 30, 10, size_known=True)
    layer.pending = make_prefix(torch.Generator().manual_seed(0), 15)
    layer.update(*states(layer.pending.index))
    past.layers = [layer]
    restore_static(past)
    assert past.layers == [layer]
    layer.reset()
    restore_static(past)
    assert type(past.layers[0]) is StaticLayer
    assert past.layers[0].max_cache_len == 30


def steps(llava, inputs, count):
    """Decode the same words step by step."""
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits, past = [], None
    new = inputs
    for step in range(count):
        out = llava(**new, position_ids=positions, past_key_values=past, use_cache=True)
        past = out.past_key_values
        logits.append(out.logits[:, -1])
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = mask.sum(1, keepdim=True) - 1
        new = {"input_ids": torch.full((len(mask), 1), 10 + step % 7), "attention_mask": mask}
    return torch.stack(logits, 1), past


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_trimmed_windows_decode_like_untrimmed_ones(attention, monkeypatch):
    llava = model("mistral", attention)
    for inputs in (
        tiny.batch(tiny.prompt(1, seed=1)),
        tiny.batch(tiny.prompt(2, seed=2), tiny.prompt(1, seed=3)),
    ):
        with feathervlm.prune(llava, FEATHER):
            trimmed, past = steps(llava, inputs, 60)
            monkeypatch.setattr(PrunedSlidingLayer, "_trim", lambda layer: None)
            untrimmed, whole = steps(llava, inputs, 60)
            monkeypatch.undo()
        torch.testing.assert_close(trimmed, untrimmed, atol=TOLERANCE, rtol=0)
        window = llava.config.text_config.sliding_window
        if len(inputs["input_ids"]) == 1:
            assert {layer.keys.shape[-2] for layer in past.layers} == {window - 1}
        assert min(layer.keys.shape[-2] for layer in whole.layers[2:]) > 60


@pytest.mark.parametrize("text", ["llama", "mistral"])
def test_a_copied_cache_goes_its_own_way(text):
    llava, inputs = model(text), tiny.batch(tiny.prompt(1, seed=4))
    with feathervlm.prune(llava, FEATHER) as pruning:
        tokens, _, past = generate(llava, inputs)
        twin = copy.deepcopy(past)
        for layer, other in zip(past.layers, twin.layers, strict=True):
            assert type(layer) is type(other)
            assert layer.keys.data_ptr() != other.keys.data_ptr()
        results = []
        for word, cache_used in ((40, past), (50, twin)):
            ids = torch.cat([inputs["input_ids"], tokens, torch.tensor([[word, 60, 61]])], 1)
            second = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            results.append((second, *generate(llava, second, past_key_values=cache_used)))
    for second, new, logits, _ in results:
        ids = torch.cat([second["input_ids"], new[:, :-1]], 1)
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": inputs["pixel_values"]}
        with feathervlm.prune(llava, frozen(FEATHER, pruning.report)), torch.no_grad():
            again = llava(**whole).logits[:, -logits.shape[1] :]
        torch.testing.assert_close(logits, again, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", [DynamicCache, partial(StaticCache, max_cache_len=120)])
def test_a_pruned_cache_fails_loudly_once_the_hooks_are_gone(kind):
    llava, inputs = model(), tiny.batch(tiny.prompt(1, seed=5))
    with feathervlm.prune(llava, FEATHER):
        past = kind(config=llava.config.get_text_config())
        tokens, _, past = generate(llava, inputs, past_key_values=past, disable_compile=True)
        twin = copy.deepcopy(past)
    ids = torch.cat([inputs["input_ids"], tokens, torch.tensor([[7, 8]])], 1)
    second = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for kept in (past, twin):
        with pytest.raises(PruningError, match="has been removed"):
            llava.generate(**second, past_key_values=kept, max_new_tokens=2, disable_compile=True)
    with feathervlm.prune(llava, FEATHER), pytest.raises(PruningError, match="has been removed"):
        llava.generate(**second, past_key_values=twin, max_new_tokens=2, disable_compile=True)
