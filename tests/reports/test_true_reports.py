"""Reports that must be true where the answer is: of generations that run several passes, as with the guidance of
transformers#24536, and of weights whose stored number is not that of their shape, as in transformers#25978."""

import copy
from functools import cache

import pytest
import torch
import transformers as tf
from accelerate import cpu_offload, disk_offload
from torch import nn

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from feathervlm import UnprunedWarning, methods
from feathervlm.core.cost import LayerCost
from feathervlm.engine.blueprint import active_weights
from feathervlm.engine.decoder import DecoderView
from method_cases import in_gate, selected

METHOD = methods.FastV(layer=2)
PROMPT = tiny.prompt(1, seed=1)
NO_IMAGE = "there was no image in the input"


@cache
def llava():
    return tiny.llava()


def kept(report):
    return [[tokens.tolist() for tokens in stage.kept] for stage in report.stages]


def reports(model, inputs, strict=True, **options):
    """The reports of a plain generation, and of one with options."""
    made = []
    for more in ({}, options):
        with feathervlm.prune(model, METHOD, strict=strict) as pruning:
            model.generate(**inputs, max_new_tokens=3, do_sample=False, **more)
        made.append(pruning.report)
    return made


class Contrast(tf.LogitsProcessor):
    """Runs another prompt of the same model at every step, as contrastive decoding does."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs

    def __call__(self, input_ids, scores):
        return scores - 0.1 * self.model(**self.inputs).logits[:, -1]


NEGATIVE = torch.tensor([[1, 8, 9, 10]])
PASSES = {
    "negative prompt": {"guidance_scale": 1.5, "negative_prompt_ids": NEGATIVE},
    "guidance alone": {"guidance_scale": 1.5},
    "guidance without a cache": {"guidance_scale": 1.5, "negative_prompt_ids": NEGATIVE, "use_cache": False},
    "lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("options", PASSES.values(), ids=PASSES)
def test_a_pass_without_the_image_leaves_its_report(options):
    plain, other = reports(llava(), tiny.batch(PROMPT), **options)
    assert other.pruned
    assert kept(other) == kept(plain)
    assert other.tokens_per_layer == plain.tokens_per_layer


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}])
@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 1.5, "negative_prompt_ids": NEGATIVE.repeat(2, 1)}])
def test_beams_keep_what_their_prompt_keeps(options, guidance):
    plain, other = reports(llava(), tiny.batch(PROMPT), **options, **guidance)
    assert kept(other) == [stage * 2 for stage in kept(plain)]
    assert other.flops_ratio == plain.flops_ratio
    assert other.kv_bytes_ratio == plain.kv_bytes_ratio


@pytest.mark.parametrize("images", [0, 1])
def test_the_prompt_is_reported_and_not_what_it_is_contrasted_with(images):
    model, others = llava(), tiny.batch(tiny.prompt(images, seed=5, before=9))
    plain, other = reports(model, tiny.batch(PROMPT), logits_processor=[Contrast(model, others)])
    assert kept(other) == kept(plain)
    assert other.layout.mask.shape == plain.layout.mask.shape


def test_a_model_that_assists_itself_is_reported_once():
    plain, other = reports(llava(), tiny.batch(PROMPT), assistant_model=llava())
    assert kept(other) == kept(plain)


def test_a_reason_stays_as_well():
    chunked = {"prefill_chunk_size": 16}
    with pytest.warns(UnprunedWarning, match="prefill_chunk_size"):
        plain, other = reports(llava(), tiny.batch(PROMPT), strict=False, **chunked, **PASSES["negative prompt"])
    assert plain.pruned
    assert "prefill_chunk_size" in other.reason
    early = methods.Feather(layers=(2, 4), keep=0.4)
    inputs = tiny.batch([*PROMPT[: PROMPT.index(tiny.IMAGE)], *[tiny.IMAGE] * 36])  # no text asks
    with (
        pytest.warns(UnprunedWarning, match="ends inside an image"),
        feathervlm.prune(llava(), early, strict=False) as pruning,
    ):
        llava().generate(**inputs, max_new_tokens=2, do_sample=False, **PASSES["negative prompt"])
    assert "ends inside an image" in pruning.report.reason


def test_the_next_prompt_has_a_report_of_its_own():
    model, text = llava(), tiny.batch(tiny.prompt(0, seed=3))
    with feathervlm.prune(model, METHOD) as pruning, torch.no_grad():
        model.generate(**tiny.batch(PROMPT), max_new_tokens=2, do_sample=False)
        assert pruning.report.pruned
        model.generate(**text, max_new_tokens=2, do_sample=False)
        assert pruning.report.reason == NO_IMAGE
        model(**tiny.batch(PROMPT))
        assert pruning.report.pruned
        model(**text)
        assert pruning.report.reason == NO_IMAGE
        with pytest.raises(RuntimeError, match="inside"):
            model.generate(**tiny.batch(PROMPT), max_new_tokens=3, logits_processor=[fail])
        assert pruning.report.pruned
        model.generate(**text, max_new_tokens=2, do_sample=False)
        assert pruning.report.reason == NO_IMAGE


def fail(ids, scores):
    raise RuntimeError("inside")


# FLOPs: one figure for one pruning, however the weights are stored.


def figures(model):
    with torch.no_grad(), feathervlm.prune(model, METHOD) as pruning:
        model(**tiny.batch(PROMPT))
    return pruning.report.flops_ratio, pruning.report.kv_bytes_ratio


class Packed(nn.Module):
    """A linear layer with two numbers of four bits in every stored one, as bitsandbytes has it."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.data
        self.scale, self.shape = weight.abs().max() / 7, weight.shape
        levels = (weight / self.scale).round().add(8).to(torch.uint8).flatten()
        self.weight = nn.Parameter((levels[::2] * 16 + levels[1::2])[:, None], requires_grad=False)

    def forward(self, states):
        pair = torch.stack([self.weight[:, 0] // 16, self.weight[:, 0] % 16], 1)
        return states @ ((pair.flatten().float() - 8) * self.scale).view(self.shape).T


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it, as PEFT has it."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear
        self.lora_A = nn.Linear(linear.in_features, 16, bias=False)
        self.lora_B = nn.Linear(16, linear.out_features, bias=False)

    def forward(self, states):
        return self.base_layer(states) + self.lora_B(self.lora_A(states))


def replaced(make):
    def change(model, folder):
        for part in list(model.get_decoder().modules()):
            for name, child in list(part.named_children()):
                if type(child) is nn.Linear:
                    setattr(part, name, make(child))
        return model

    return change


def dynamic_int8(model, folder):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def compiled_layers(model, folder):
    layers = model.get_decoder().layers
    for index, layer in enumerate(layers):
        layers[index] = torch.compile(layer)
    return model


def offloaded(where):
    def change(model, folder):
        if where == "cpu":
            cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            disk_offload(model, str(folder), execution_device=torch.device("cpu"))
        assert next(model.get_decoder().parameters()).is_meta
        return model

    return change


STORED = {
    "bfloat16": lambda model, folder: model.bfloat16(),
    "4 bit": replaced(Packed),
    "dynamic int8": dynamic_int8,
    "adapters": replaced(Adapted),
    "on the CPU": offloaded("cpu"),
    "on disk": offloaded("disk"),
    "compiled layers": compiled_layers,
}


@pytest.mark.parametrize("way", selected(in_gate(way != "compiled layers", way) for way in STORED))
@pytest.mark.filterwarnings("ignore")
def test_one_pruning_has_one_figure(way, tmp_path):
    assert figures(STORED[way](copy.deepcopy(tiny.llava()), tmp_path)) == figures(llava())


ROPE = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 1024},
    "llama3": {
        "factor": 2.0,
        "original_max_position_embeddings": 1024,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {
        "factor": 2.0,
        "original_max_position_embeddings": 1024,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    },
}


@pytest.mark.parametrize("kind", ROPE)
def test_every_kind_of_rotation_has_a_figure(kind):
    model = tiny.llava(rope_parameters={"rope_type": kind, "rope_theta": 1e4, **ROPE[kind]})
    with torch.no_grad(), feathervlm.prune(model, METHOD) as pruning:
        model(**tiny.batch(PROMPT))
    assert (pruning.report.flops_ratio, pruning.report.kv_bytes_ratio) == figures(llava())
    assert pruning.report.notes == []


@pytest.mark.parametrize(
    "name", selected(in_gate(name in ("qwen3_vl_moe", "llama4", "lfm2_vl", "molmo2"), name) for name in FAMILY_CASES)
)
def test_weights_by_the_config_are_those_of_a_plain_model(name):
    view = DecoderView(FAMILY_CASES[name].model())
    experts = getattr(view.config, "num_experts_per_tok", None)
    assert [cost.weights for cost in view.costs] == [active_weights(layer, experts) for layer in view.layers]
    assert view.cost_notes == []


class OwnDecoder(tf.LlamaModel):
    """A decoder that cannot be made from a config alone."""

    def __init__(self, config, extra):
        super().__init__(config)


def test_a_decoder_that_cannot_be_made_anew_is_counted_as_it_is_and_the_report_says_so():
    model = tiny.llava()
    own = OwnDecoder(model.get_decoder().config, extra=True).eval()
    own.load_state_dict(model.get_decoder().state_dict())
    model.model.language_model = own
    with torch.no_grad(), feathervlm.prune(model, METHOD) as pruning:
        model(**tiny.batch(PROMPT))
    assert (pruning.report.flops_ratio, pruning.report.kv_bytes_ratio) == figures(llava())
    assert "OwnDecoder cannot be made from its config" in pruning.report.notes[0]


# Keys and values: those that the caches really hold.


def stored(cache):
    return sum(
        layer.keys.numel() + layer.values.numel() for layer in cache.layers if getattr(layer, "keys", None) is not None
    )


@pytest.mark.parametrize(
    "name",
    selected(in_gate(name in ("gemma3", "exaone4_5", "cohere_compass", "llama4"), name) for name in FAMILY_CASES),
)
@torch.no_grad()
def test_the_kv_ratio_is_that_of_the_real_caches(name):
    case = FAMILY_CASES[name]
    model, inputs = case.model(), case.inputs(case.prompt(0, seed=1))
    caches = []
    for method in (None, methods.Uniform(layer=case.layers[0], stride=2)):
        pruning = None if method is None else feathervlm.prune(model, method)
        out = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, do_sample=False)
        caches.append(out.past_key_values)
        if pruning is not None:
            pruning.remove()
    whole, pruned = map(stored, caches)
    assert pruning.report.kv_bytes_ratio == pytest.approx(pruned / whole, rel=1e-12)


@torch.no_grad()
def test_windows_and_full_layers_count_earlier_turns_by_themselves():
    case = FAMILY_CASES["exaone4_5"]
    model, method = case.model(), methods.Uniform(layer=4, stride=2)
    first, second = case.inputs(case.prompt(0, seed=1)), case.inputs(case.prompt(1, 2, seed=2))
    length = first["input_ids"].shape[1] + second["input_ids"].shape[1]

    def turns():
        past = model(**first, use_cache=True).past_key_values
        model(**{**second, "attention_mask": torch.ones(1, length).long()}, past_key_values=past)
        return stored(past)

    whole = turns()
    with feathervlm.prune(model, method) as pruning:
        pruned = turns()
    assert pruning.report.kv_bytes_ratio == pytest.approx(pruned / whole, rel=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_counts_the_pairs_that_exist(causal, window):
    for tokens in range(9):
        for past in range(4) if causal else [0]:
            pairs = sum(
                1
                for query in range(past, past + tokens)
                for key in range(past + tokens)
                if (key <= query or not causal) and (window is None or query - key < window)
            )
            if not causal and window is not None:
                pairs = tokens * min(tokens, 2 * window + 1)  # at the ends of the text a window is as wide as inside
            layer = LayerCost(weights=0, attention_width=1, kv_width=1, window=window, causal=causal)
            assert layer.flops(tokens, past) == 4 * pairs
