"""Refusals are one clear sentence; with strict=False the model runs unpruned and the report says so."""

import copy
import warnings
from functools import cache

import pytest
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

import feathervlm
import tiny_models as tiny
from feathervlm import Grid, PruningError, Schedule, Stage, Unprunable, VisualLayout, methods
from laws import OLD, TOLERANCE, generate, layout_of, traces

FEATHER = methods.Feather(layers=(2, 4), keep=0.4)
UNIFORM = methods.Uniform(layer=2)
PROMPT = tiny.prompt(1, seed=1)


@cache
def model(text="llama", attention="sdpa"):
    return tiny.llava(text, attention=attention)


class QuantizedLayer(DynamicLayer):
    pass


def quantized():
    past = DynamicCache()
    past.layers = [QuantizedLayer() for _ in range(tiny.LAYERS)]
    return past


def logits_of(llava, **options):
    return generate(llava, tiny.batch(PROMPT), tokens=3, **options)[1]


@torch.no_grad()
def forward(llava, prompts=(PROMPT,), side="left", **changes):
    return llava(**{**tiny.batch(*prompts, side=side), **changes}).logits


def embedded(llava):
    inputs = tiny.batch(PROMPT)
    features = llava.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
    embeds = llava.get_input_embeddings()(inputs["input_ids"]).detach()
    embeds[inputs["input_ids"] == tiny.IMAGE] = features.detach()
    return {"inputs_embeds": embeds, "input_ids": None, "pixel_values": None}


IN_IMAGE = PROMPT[: PROMPT.index(tiny.IMAGE) + tiny.SIDE**2]
CASES = {
    "quantized cache": (FEATHER, "QuantizedLayer", lambda m: logits_of(m, past_key_values=quantized())),
    "quantized cache by generate's own rules": (
        FEATHER,
        "QuantizedLayer",
        lambda m: forward(m, past_key_values=quantized(), use_cache=True),
    ),
    "chunked prefill": (FEATHER, "prefill_chunk_size=8", lambda m: logits_of(m, prefill_chunk_size=8)),
    "chunked prefill by config": (
        FEATHER,
        "prefill_chunk_size=8",
        lambda m: logits_of(m, generation_config=chunked(m)),
    ),
    "prompt that ends inside an image": (FEATHER, "ends inside an image", lambda m: forward(m, [IN_IMAGE])),
    "prompt that ends inside an image, counts planned": (
        UNIFORM,
        "ends inside an image",
        lambda m: forward(m, [IN_IMAGE]),
    ),
    "merged embeddings": (FEATHER, "inputs_embeds do not show", lambda m: forward(m, **embedded(m))),
    "label right after the image": (
        FEATHER,
        "Sample 0 has a label right after a visual token",
        lambda m: forward(m, labels=tiny.batch(PROMPT)["input_ids"]),
    ),
}


def chunked(llava):
    config = GenerationConfig(**llava.generation_config.to_dict())
    config.prefill_chunk_size = 8
    return config


@pytest.mark.parametrize("case", CASES)
def test_strict_refuses_in_one_sentence_and_stays_usable(case):
    method, message, run = CASES[case]
    llava = model()
    with feathervlm.prune(llava, method) as pruning:
        expected = forward(llava)
        attached = traces(llava)
        with pytest.raises(Unprunable, match=message) as refusal:
            run(llava)
        assert "\n" not in str(refusal.value)
        assert traces(llava) == attached
        assert torch.equal(forward(llava), expected)
        assert pruning.report.pruned


@pytest.mark.parametrize("case", CASES)
def test_lenient_warns_and_runs_unpruned(case):
    method, message, run = CASES[case]
    llava = model()
    plain = run(llava)
    with feathervlm.prune(llava, method, strict=False) as pruning:
        with pytest.warns(UserWarning, match=f"runs unpruned.*{message}"):
            result = run(llava)
        assert torch.equal(result, plain)
        assert not pruning.report.pruned
        assert message.split(" has")[0] in str(pruning.report)
        with pytest.raises(PruningError, match="nothing to report"):
            _ = pruning.report.stages
        assert forward(llava) is not None
        assert pruning.report.pruned


def test_offloaded_caches_are_refused():
    llava, past = model(), DynamicCache()
    past.offloading = True
    with feathervlm.prune(llava, FEATHER), pytest.raises(Unprunable, match="offloaded cache"):
        forward(llava, past_key_values=past)


def test_static_windows_are_refused_or_left_alone():
    llava, options = model("mistral"), {"cache_implementation": "static", "disable_compile": True}
    plain = logits_of(llava, **options)
    with feathervlm.prune(llava, FEATHER), pytest.raises(Unprunable, match="StaticSlidingWindowLayer"):
        logits_of(llava, **options)
    with feathervlm.prune(llava, FEATHER, strict=False) as pruning:
        with pytest.warns(UserWarning, match="StaticSlidingWindowLayer"):
            assert torch.equal(logits_of(llava, **options), plain)
        assert "StaticSlidingWindowLayer" in pruning.report.reason


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (methods.FastV(layer=2, over="all").schedule(), "over='all' needs the keys of earlier turns"),
        (
            Schedule(Stage(2, Grid(2)), Stage(4, Grid(4), positions="renumber")),
            "positions='renumber' works on the first prompt",
        ),
        (Schedule(Stage(2, Grid(2), positions="renumber"), Stage(4, Grid(4))), "positions='renumber' works on"),
        (methods.BeforeLLM().schedule(), "Scoring in a pass of its own"),
    ],
    ids=["over-all", "renumber-later", "renumber", "before-llm"],
)
def test_an_image_on_a_used_cache_is_refused_or_joins_it_unpruned(schedule, message, attention):
    llava, first = model(attention=attention), tiny.batch(PROMPT)
    second = tiny.batch(tiny.prompt(1, seed=2))
    ids = torch.cat([first["input_ids"], second["input_ids"]], 1)
    both = torch.ones_like(ids)

    def turns():
        past = llava(**first, use_cache=True).past_key_values
        return llava(**{**second, "attention_mask": both}, past_key_values=past).logits

    with torch.no_grad():
        with feathervlm.prune(llava, schedule), pytest.raises(Unprunable, match=message):
            turns()
        with feathervlm.prune(llava, schedule, strict=False) as pruning:
            llava(**first)
            kept = [stage.kept[0] for stage in pruning.report.stages]
            with pytest.warns(UserWarning, match=message):
                logits = turns()
            assert message in pruning.report.reason
        # The second image joins in full.
        more = torch.arange(tiny.SIDE**2, 2 * tiny.SIDE**2)
        stages = [
            Stage(stage.at, feathervlm.core.Given([torch.cat([some, more])]), positions=stage.positions)
            for stage, some in zip(schedule, kept, strict=True)
        ]
        pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
        with feathervlm.prune(llava, Schedule(*stages)):
            whole = llava(input_ids=ids, attention_mask=both, pixel_values=pixels).logits
    torch.testing.assert_close(logits[:, -6:], whole[:, -6:], atol=TOLERANCE, rtol=0)


@pytest.mark.skipif(OLD, reason="older transformers chunk a used cache wrongly, pruned or not")
def test_a_chunk_on_a_pruned_cache_runs_unpruned_but_right():
    llava, first = model(), tiny.batch(PROMPT)
    with feathervlm.prune(llava, FEATHER, strict=False):
        tokens, _, past = generate(llava, first)
        ids = torch.cat([first["input_ids"], tokens, torch.tensor([[7, 8, 9, 10, 11]])], 1)
        second = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = generate(llava, second, past_key_values=copy.deepcopy(past))[1]
        with pytest.warns(UserWarning, match="prefill_chunk_size=2"):
            logits = generate(llava, second, past_key_values=past, prefill_chunk_size=2)[1]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_pruning_twice_is_an_error_through_every_door():
    llava, before = model(), traces(model())
    layout = layout_of(tiny.batch(PROMPT)["input_ids"], tiny.IMAGE, tiny.SIDE)
    with feathervlm.prune(llava, FEATHER):
        for inner, given in ((llava, None), (llava.model, None), (llava.model.language_model, layout)):
            with pytest.raises(PruningError, match="is being pruned already"):
                feathervlm.prune(inner, FEATHER, layout=given)
            with pytest.raises(PruningError, match="is being pruned already"):
                feathervlm.prune(inner, FEATHER, layout=given, strict=False)
        assert forward(llava) is not None
    assert traces(llava) == before
    with feathervlm.prune(llava.model, FEATHER) as pruning:
        with pytest.raises(PruningError, match="is being pruned already"):
            feathervlm.prune(llava, FEATHER)
        forward(llava)
        assert pruning.report.pruned
    assert traces(llava) == before


def test_a_removed_pruning_cannot_be_entered_again():
    pruning = feathervlm.prune(model(), FEATHER)
    pruning.remove()
    pruning.remove()
    with pytest.raises(PruningError, match="has been removed"), pruning:
        pass


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("method", "message"),
    [
        (methods.FastV(layer=6), "Layer 6 is beyond this model's 6 layers"),
        (methods.Feather(layers=(2, 32)), "Layer 32 is beyond"),
        (methods.FastV(layer=0), "layer 0 has no layer before it"),
        (methods.Feather(layers=(4, 2)), "4, 2"),
        ("feathr", "no method 'feathr'"),
        (3, "method=3"),
    ],
)
def test_a_meaningless_request_is_always_an_error(method, message, strict):
    before = traces(model())
    with pytest.raises(PruningError, match=message):
        feathervlm.prune(model(), method, strict=strict)
    assert traces(model()) == before


def plan(length, images=1, batch=1):
    ids = tiny.batch(*[tiny.prompt(images)] * batch)["input_ids"]
    return layout_of(ids, tiny.IMAGE, tiny.SIDE), torch.zeros(1, length, dtype=torch.long)


@pytest.mark.parametrize("strict", [True, False])
def test_a_layout_for_another_input_is_an_error(strict):
    layout, shorter = plan(20)
    with (
        feathervlm.prune(tiny.llama(), FEATHER, layout=layout, strict=strict) as pruning,
        pytest.raises(PruningError, match="The layout describes 1 x 50 tokens but the model was given 1 x 20"),
    ):
        pruning.model(input_ids=shorter)
    layout, longer = plan(60, batch=2)
    with (
        feathervlm.prune(tiny.llama(), FEATHER, layout=layout, strict=strict) as pruning,
        pytest.raises(PruningError, match="The layout describes 2 x 50 tokens but the model was given 1 x 60"),
    ):
        pruning.model(input_ids=longer)


@pytest.mark.parametrize(
    ("mask", "grids", "message"),
    [
        (torch.ones(4), [[]], r"shape \(batch, sequence\)"),
        (torch.ones(1, 4), [[], []], "2 samples but its mask has 1 rows"),
        (torch.ones(1, 4), [[(1, 2, 3)]], "4 visual tokens but its grids .* make 6"),
        (torch.ones(1, 4), [[(4,)]], r"\(4,\) is not a grid"),
        (torch.ones(1, 4), [[(0, 4)]], r"\(0, 4\) is not a grid"),
    ],
)
def test_a_layout_that_contradicts_itself_is_an_error(mask, grids, message):
    with pytest.raises(PruningError, match=message):
        VisualLayout(mask, grids)


def martian():
    llm = tiny.llama()
    llm.config.model_type = "martian"
    llm.config.vision_config = {}
    return llm


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tiny.llama, r"LlamaForCausalLM \(llama\) takes no images; .*layout=VisualLayout"),
        (martian, r"\(martian\) is of an unknown family, .*layout=VisualLayout"),
    ],
)
def test_unknown_models_need_a_layout(make, message):
    llm = make()
    ids = tiny.batch(tiny.prompt(0))["input_ids"]
    plain, before = llm(input_ids=ids).logits, traces(llm)
    with pytest.raises(Unprunable, match=message):
        feathervlm.prune(llm, FEATHER)
    with pytest.warns(UserWarning, match=message):
        pruning = feathervlm.prune(llm, FEATHER, strict=False)
    with pruning:
        assert traces(llm) == before
        assert torch.equal(llm(input_ids=ids).logits, plain)
        assert "layout=VisualLayout" in str(pruning.report)
    layout, _ = plan(50)
    with feathervlm.prune(llm, FEATHER, layout=layout) as pruning:
        llm(input_ids=tiny.batch(tiny.prompt(0, after=45))["input_ids"])
        assert pruning.report.pruned


def pretend(change):
    llm = tiny.llama()
    change(llm.config)
    return llm


UNFIT = {
    "flex_attention": lambda config: setattr(config, "_attn_implementation_internal", "flex_attention"),
    "paged": lambda config: setattr(config, "_attn_implementation_internal", "paged|sdpa"),
    "encoder-decoder": lambda config: setattr(config, "is_encoder_decoder", True),
    "shares keys": lambda config: setattr(config, "num_kv_shared_layers", 2),
    "sliding window": lambda config: (
        setattr(config, "_attn_implementation_internal", "flash_attention_2"),
        setattr(config, "layer_types", ["sliding_attention"] * tiny.LAYERS),
    ),
}


@pytest.mark.parametrize("message", UNFIT)
def test_unfit_models_are_refused_at_once(message):
    llm, (layout, _) = pretend(UNFIT[message]), plan(50)
    before = traces(llm)
    with pytest.raises(Unprunable, match=message):
        feathervlm.prune(llm, FEATHER, layout=layout)
    with pytest.warns(UserWarning, match=message):
        pruning = feathervlm.prune(llm, FEATHER, layout=layout, strict=False)
    assert traces(llm) == before
    assert message in pruning.report.reason


def test_signals_that_a_layout_cannot_give_are_refused_or_left_alone():
    llm, (layout, _) = tiny.llama(), plan(50)
    ids = tiny.batch(tiny.prompt(0, after=45))["input_ids"]
    plain = llm(input_ids=ids).logits
    method = methods.KNN(layer=2, count=9)
    with (
        feathervlm.prune(llm, method, layout=layout),
        pytest.raises(Unprunable, match="features=projected"),
    ):
        llm(input_ids=ids)
    lenient, warned = (
        feathervlm.prune(llm, method, layout=layout, strict=False),
        pytest.warns(UserWarning, match="features=projected"),
    )
    with lenient, warned:
        assert torch.equal(llm(input_ids=ids).logits, plain)


def test_no_image_is_no_refusal():
    llava, text = model(), tiny.batch(tiny.prompt(0, seed=3))
    plain = generate(llava, text)[1]
    with feathervlm.prune(llava, FEATHER) as pruning, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(generate(llava, text)[1], plain)
        assert "no image in the input" in str(pruning.report)
