"""Static caches store the kept tokens only, and one compiled graph decodes them all."""

from functools import cache

import pytest
import torch
from transformers import CompileConfig, StaticCache

import feathervlm
import tiny_models as tiny
from feathervlm import methods
from feathervlm.core import Unprunable
from feathervlm.engine.cache.static import PrunedStaticLayer
from laws import TOLERANCE, generate
from method_cases import MODES, crossed

METHODS = {
    "feather": methods.Feather(layers=(2, 4), keep=0.4),
    "fixed": methods.Feather(layers=(2, 4), keep=0.4, fixed=True),
    "layer-0": methods.Uniform(layer=0),
    "renumbered": methods.PyramidDrop(layers=(1, 3, 4)),
    "shuffled": methods.ShuffledPositions(),
    "merged": methods.AveragePool(layer=2),
    "cut": methods.IVCPrune(layer=3, keep=0.4),
    "frozen": MODES["freeze-on"],
    "waiting": MODES["wait"],
    "end": MODES["end"],
}
STATIC = {"cache_implementation": "static", "disable_compile": True}
IMAGE = tiny.IMAGE
RAGGED = tiny.batch(tiny.prompt(1, seed=1), tiny.prompt(0, seed=2), tiny.prompt(2, seed=3, after=3))


@cache
def model(text="llama", attention="sdpa"):
    return tiny.llava(text, attention=attention)


@pytest.fixture
def method(name):
    return METHODS[name]


CROSSED = pytest.mark.parametrize(("attention", "name"), crossed(["sdpa", "eager"], METHODS))


def static_cache(llava, length=120):
    return StaticCache(config=llava.config.get_text_config(), max_cache_len=length)


def same(one, other):
    torch.testing.assert_close(one[1], other[1], atol=TOLERANCE, rtol=0)
    assert torch.equal(one[0], other[0])


@pytest.mark.parametrize(("text", "attention", "name"), crossed(["llama", "qwen3"], ["sdpa", "eager"], METHODS))
def test_static_generation_equals_dynamic(text, attention, method):
    llava = model(text, attention)
    for inputs in (
        tiny.batch(tiny.prompt(1, seed=4)),
        tiny.batch(tiny.prompt(2, seed=5)),
        RAGGED,
    ):
        with feathervlm.prune(llava, method):
            same(generate(llava, inputs, **STATIC), generate(llava, inputs))


@CROSSED
def test_static_beams_equal_dynamic(attention, method):
    llava, options = model("llama", attention), {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with feathervlm.prune(llava, method):
        assert torch.equal(llava.generate(**RAGGED, **options, **STATIC), llava.generate(**RAGGED, **options))


@pytest.mark.parametrize("name", METHODS)
def test_buffers_have_no_room_for_dropped_tokens(name, monkeypatch):
    monkeypatch.setattr("feathervlm.engine.cache.static.BUCKET", step := 5)
    llava, inputs = model(), tiny.batch(tiny.prompt(1, seed=4))
    with feathervlm.prune(llava, METHODS[name]) as pruning:
        past = generate(llava, inputs, **STATIC)[2]
    total, size_known = tiny.SIDE**2, True
    for layer, tokens in zip(past.layers, pruning.report.cached_per_layer[0], strict=True):
        dropped = total - tokens
        size_known = size_known and (name != "feather" or not dropped)
        assert layer.keys.shape[-2] == past.get_max_length() - (dropped if size_known else dropped // step * step)
        assert isinstance(layer, PrunedStaticLayer) or tokens == total


@CROSSED
def test_a_static_cache_given_by_hand_can_be_reset_and_used_again(attention, method):
    llava = model("llama", attention)
    prompts = [
        tiny.prompt(1, seed=6),
        tiny.prompt(0, seed=7),
        tiny.prompt(2, seed=8),
        tiny.prompt(1, seed=9),
    ]
    past = static_cache(llava)
    with feathervlm.prune(llava, method):
        for prompt in prompts:
            past.reset()
            inputs = tiny.batch(prompt)
            same(generate(llava, inputs, past_key_values=past, disable_compile=True), generate(llava, inputs))


@CROSSED
def test_static_multi_turn_text_equals_dynamic(attention, method):
    llava, inputs = model("llama", attention), tiny.batch(tiny.prompt(1, seed=10))
    results = []
    with feathervlm.prune(llava, method):
        for past in (None, static_cache(llava)):
            tokens, _, past = generate(llava, inputs, past_key_values=past, disable_compile=True)
            second = tiny.batch(tiny.prompt(0, seed=11))
            second["input_ids"] = torch.cat([inputs["input_ids"], tokens, second["input_ids"]], 1)
            second["attention_mask"] = torch.ones_like(second["input_ids"])
            results.append(generate(llava, second, past_key_values=past, disable_compile=True))
    same(*results)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_text_prompt_after_a_static_one_is_not_disturbed(attention):
    llava, text = model("llama", attention), tiny.batch(tiny.prompt(0, seed=12))
    plain = generate(llava, text)
    with feathervlm.prune(llava, METHODS["feather"]):
        generate(llava, tiny.batch(tiny.prompt(1, seed=13)), **STATIC)
        same(generate(llava, text), plain)
        same(generate(llava, text, **STATIC), plain)


@torch.no_grad()
def by_hand(llava, inputs, past, steps=5):
    mask, logits = inputs["attention_mask"], []
    out = llava(**inputs, past_key_values=past, use_cache=True)
    for _ in range(steps):
        logits.append(out.logits[:, -1])
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = mask.sum(1, keepdim=True) - 1
        out = llava(
            input_ids=logits[-1][:, :IMAGE].argmax(-1)[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=out.past_key_values,
        )
    return torch.stack(logits, 1)


@CROSSED
def test_a_loop_without_generate_equals_generate(attention, method):
    llava = model("llama", attention)
    ragged = {**RAGGED, "position_ids": (RAGGED["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    with feathervlm.prune(llava, method):
        for inputs in (tiny.batch(tiny.prompt(1, seed=4)), ragged):
            dynamic = by_hand(llava, inputs, None)
            torch.testing.assert_close(by_hand(llava, inputs, static_cache(llava)), dynamic, atol=TOLERANCE, rtol=0)
            generated = generate(llava, inputs, tokens=5, suppress_tokens=list(range(IMAGE, tiny.VOCABULARY)))[1]
            torch.testing.assert_close(generated, dynamic, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_static_and_dynamic_conversations_may_alternate(method):
    llava, inputs, steps = model(), RAGGED, 4
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with feathervlm.prune(llava, method), torch.no_grad():
        pasts = [None, static_cache(llava), None]
        for step in range(steps):
            new = inputs if step == 0 else {"input_ids": torch.full((len(ids), 1), 20 + step), "attention_mask": mask}
            outs = [llava(**new, position_ids=positions, past_key_values=past, use_cache=True) for past in pasts]
            pasts = [out.past_key_values for out in outs]
            for out in outs[1:]:
                torch.testing.assert_close(out.logits[:, -1], outs[0].logits[:, -1], atol=TOLERANCE, rtol=0)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            positions = mask.sum(1, keepdim=True) - 1


def test_static_caches_of_sliding_layers_are_refused():
    llava, inputs = model("mistral"), tiny.batch(tiny.prompt(1, seed=4))
    with feathervlm.prune(llava, METHODS["feather"]):
        with pytest.raises(Unprunable, match="StaticSlidingWindowLayer"):
            generate(llava, inputs, **STATIC)
        generate(llava, inputs)


@pytest.mark.parametrize(("batch", "name"), crossed([2, 1], ["feather", "fixed", "merged"], share=6))
def test_compiled_decoding_is_one_whole_graph_for_all_prompts(name, batch, monkeypatch):
    monkeypatch.setattr(
        "feathervlm.engine.cache.static.BUCKET", 6
    )  # 18 to 20 tokens leave before layer 2, 34 before layer 4
    torch._dynamo.reset()
    llava = tiny.llava()
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True
    past = static_cache(llava)
    kept = set()
    with feathervlm.prune(llava, METHODS[name]) as pruning:
        torch._dynamo.utils.counters.clear()
        for seed in range(5):
            inputs = tiny.batch(*[tiny.prompt(1, seed=seed + 10 * row, after=3 + seed) for row in range(batch)])
            past.reset()
            compiled = generate(llava, inputs, past_key_values=past, compile_config=config)
            same(compiled, generate(llava, inputs))
            kept.add(tuple(map(tuple, pruning.report.tokens_per_layer)))
        counters = torch._dynamo.utils.counters
        assert counters["stats"]["unique_graphs"] == 1
        assert not counters["graph_break"]
    assert (len(kept) > 1) == (name == "feather")  # other pictures keep other numbers, and still find the graph
