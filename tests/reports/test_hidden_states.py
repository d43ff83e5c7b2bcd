"""Whoever reads hidden states of a pruned model, as colpali#155 and colpali#150 do: which rows have one, and which.

Dropped tokens have none: their rows are zero, and `report.row_mask` is the attention mask of the others.
"""

from functools import cache

import pytest
import torch
import transformers as tf

import feathervlm
import tiny_models as tiny
from family_cases import FAMILY_CASES
from family_cases.base import build, refuses_freezing, refuses_renumbering
from feathervlm import Unprunable, methods
from laws import hidden, layout_of
from method_cases import METHODS, in_gate, representatives, selected

FEATHER = methods.Feather(layers=(2, 4), keep=0.4)
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}
PROMPTS = [tiny.prompt(2, seed=1), tiny.prompt(0, seed=2), tiny.prompt(1, seed=3, after=9)]


@cache
def llava(attention="sdpa"):
    return tiny.llava(attention=attention)


def kept_rows(report, attention_mask):
    """The mask once more, from the places that the layout and the last stage give."""
    mask = attention_mask.bool().clone()
    stages = [stage for stage in report.stages if stage.layer < len(report.record.costs)]  # the end drops no row
    if not stages:
        return mask
    for row, (visual, kept) in enumerate(zip(report.layout.mask, stages[-1].kept, strict=True)):
        places = visual.nonzero()[:, 0]
        dropped = sorted(set(range(len(places))) - set(kept.tolist()))
        mask[row, places[dropped]] = False
    return mask


@pytest.mark.parametrize(
    ("name", "side"),
    selected(
        in_gate((place + turn) % 2 == 0 and name in representatives(), name, side)
        for place, name in enumerate(METHODS)
        for turn, side in enumerate(("left", "right"))
    ),
)
@torch.no_grad()
def test_the_mask_marks_what_stays(name, side):
    inputs = tiny.batch(*PROMPTS, side=side)
    with feathervlm.prune(llava(), METHODS[name]) as pruning:
        states = llava().model(**inputs).last_hidden_state
    report = pruning.report
    assert report.row_mask.shape == states.shape[:2]
    assert torch.equal(report.row_mask, kept_rows(report, inputs["attention_mask"]))
    dropped = report.layout.mask & ~report.row_mask
    assert (states[dropped] == 0).all()
    assert (states[report.row_mask].abs().sum(-1) > 0).all()
    left = report.tokens_per_layer if name == "skip-kv" else [[len(kept)] for kept in report.stages[-1].kept]
    assert dropped.any() == ([tokens[-1] for tokens in left] != list(report.layout.counts))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_states_of_every_layer_are_those_with_dropped_tokens_hidden(attention, side):
    model, inputs = llava(attention), tiny.batch(*PROMPTS, side=side)
    with feathervlm.prune(model, FEATHER) as pruning:
        output = model(**inputs, output_hidden_states=True)
        base = model.model(**inputs)
    report = pruning.report
    with hidden(model, report.layout.mask, inputs["attention_mask"], report, FEATHER):
        expected = model(**inputs, output_hidden_states=True)
    assert [states.shape for states in output.hidden_states] == [states.shape for states in expected.hidden_states]
    assert torch.equal(output.hidden_states[-1], base.last_hidden_state)
    text = inputs["attention_mask"].bool() & ~report.layout.mask
    for layer, (states, right) in enumerate(zip(output.hidden_states, expected.hidden_states, strict=True)):
        stages = [stage for stage in report.stages if stage.layer < layer]
        rows, dropped = inputs["attention_mask"].bool(), torch.zeros_like(text)
        if stages:
            kept = report.record.dropped(len(stages) - 1)
            rows, dropped = rows & ~kept, kept
        torch.testing.assert_close(states[rows], right[rows], **TOLERANCE)
        assert (states[dropped] == 0).all()
    torch.testing.assert_close(output.logits[text], expected.logits[text], **TOLERANCE)


@pytest.mark.parametrize(
    "name", selected(in_gate(name in ("qwen3_vl", "gemma3", "lfm3_vl"), name) for name in FAMILY_CASES)
)
@torch.no_grad()
def test_states_keep_the_length_of_the_prompt(name):
    case = FAMILY_CASES[name]
    model, inputs = case.model(), case.inputs(*case.prompts())
    with feathervlm.prune(model, methods.Uniform(layer=min(case.layers[0], 2), stride=2)) as pruning:
        output = model(**inputs, output_hidden_states=True)
        generated = model.generate(
            **inputs, max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True
        ).hidden_states
    dropped = pruning.report.layout.mask & ~pruning.report.row_mask
    assert dropped.any()
    there = inputs["attention_mask"].bool()
    for states, of_prompt in zip(output.hidden_states, generated[0], strict=True):
        assert states.shape[:2] == inputs["input_ids"].shape
        torch.testing.assert_close(states[there], of_prompt[there], atol=case.tolerance, rtol=1e-3)
    assert (output.hidden_states[-1][dropped] == 0).all()
    assert (output.hidden_states[0][dropped] != 0).any()
    assert generated[1][-1].shape[1] == 1


@pytest.mark.parametrize("way", ["uniform:layer=0", "pool", "fastv:layer=0.2"])
@torch.no_grad()
def test_what_the_caller_passes_is_not_changed(way):
    model, inputs = tiny.llama(), tiny.batch(*PROMPTS)
    embeds, mask = model.get_input_embeddings()(inputs["input_ids"]), inputs["attention_mask"]
    layout, before = layout_of(inputs["input_ids"], tiny.IMAGE, tiny.SIDE), embeds.clone()
    with feathervlm.prune(model, way, layout=layout) as pruning:
        for _ in range(2):  # transformers registers hooks of its own in the first
            states = model(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True).hidden_states
    assert torch.equal(embeds, before)
    assert {of_layer.shape for of_layer in states} == {embeds.shape}
    assert (states[-1][layout.mask & ~pruning.report.row_mask] == 0).all()


@torch.no_grad()
def test_a_mean_over_tokens_is_one_over_those_that_stay():
    inputs = tiny.batch(*PROMPTS)
    with feathervlm.prune(llava(), FEATHER) as pruning:
        states = llava().model(**inputs, return_dict=False)[0]
    rows = pruning.report.row_mask
    means = (states * rows[..., None]).sum(1) / rows.sum(1, keepdim=True)
    alone = [states[row][stays].mean(0) for row, stays in enumerate(rows)]
    torch.testing.assert_close(means, torch.stack(alone))
    # Normalized, a mean by the attention mask is the same, as rows of zeros add nothing.
    by_attention = (states * inputs["attention_mask"][..., None]).sum(1)
    same = torch.cosine_similarity(by_attention, means)
    torch.testing.assert_close(same, torch.ones_like(same))


def test_gradients_reach_what_stays_alone():
    model, inputs = tiny.llava(), tiny.batch(PROMPTS[2])
    with feathervlm.prune(model, FEATHER) as pruning:
        states = model.model(**inputs).last_hidden_state
        states.retain_grad()
        (states * pruning.report.row_mask[..., None]).mean(1).pow(2).sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


# Retrieval: a vector for every token, and a query that looks for the best one.


def retrieval(name):
    """The config of a retrieval model, around that of a tiny model."""
    cls, inside = {
        "colpali": (tf.ColPaliForRetrieval, "paligemma"),
        "colqwen2": (tf.ColQwen2ForRetrieval, "qwen2_vl"),
        "colqwen2.5": (tf.ColQwen2ForRetrieval, "qwen2_5_vl"),
        "colmodernvbert": (tf.ColModernVBertForRetrieval, None),
    }[name]
    vlm = modern_vbert() if inside is None else FAMILY_CASES[inside].model().config
    return cls, cls.config_class(vlm_config=vlm, embedding_dim=24)


def modern_vbert(**changes):
    config = FAMILY_CASES["idefics3"].model().config
    ids = {"pad_token_id": tiny.PAD, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    text = tf.ModernBertConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        local_attention=24,
        **ids,
    )
    vision = tf.SiglipVisionConfig(
        **{key: getattr(config.vision_config, key) for key in ("hidden_size", "intermediate_size", "image_size")},
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
    )
    return tf.ModernVBertConfig(
        text_config=text, vision_config=vision, image_token_id=tiny.IMAGE, pixel_shuffle_factor=2, **changes
    )


class OwnHead(tf.Qwen2VLModel):
    """As colpali-engine makes its models: the base model returns the vectors themselves."""

    def __init__(self, config):
        super().__init__(config)
        self.custom_text_proj = torch.nn.Linear(64, 24)

    def forward(self, *args, **kwargs):
        kwargs.pop("return_dict", None)
        states = super().forward(*args, **kwargs, use_cache=False, return_dict=True).last_hidden_state
        vectors = torch.nn.functional.normalize(self.custom_text_proj(states), dim=-1)
        return vectors * kwargs["attention_mask"].unsqueeze(-1)


class HeadAround(tf.PaliGemmaPreTrainedModel):
    """As colpali-engine makes ColPali: the model with its head is inside."""

    def __init__(self, config):
        super().__init__(config)
        self.model = tf.PaliGemmaForConditionalGeneration(config)
        self.custom_text_proj = torch.nn.Linear(64, 24)
        self.post_init()

    def forward(self, *args, **kwargs):
        states = self.model(*args, **kwargs, output_hidden_states=True).hidden_states[-1]
        vectors = torch.nn.functional.normalize(self.custom_text_proj(states), dim=-1)
        return vectors * kwargs["attention_mask"].unsqueeze(-1)


RETRIEVAL = ["colpali", "colqwen2", "colqwen2.5", "colmodernvbert", "own head", "head around"]
CASES = {
    "colpali": "paligemma",
    "colqwen2": "qwen2_vl",
    "colqwen2.5": "qwen2_5_vl",
    "colmodernvbert": "idefics3",
    "own head": "qwen2_vl",
    "head around": "paligemma",
}


@cache
def retriever(name, attention="sdpa"):
    if name in ("own head", "head around"):
        cls, config = {"own head": OwnHead, "head around": HeadAround}[name], FAMILY_CASES[CASES[name]].model().config
    else:
        cls, config = retrieval(name)
    model = build(cls, config, attention)
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "proj" in part and part.endswith("bias") and weight.shape == (24,):
                weight.fill_(0.3)  # a vector of a row of zeros is not zero by itself
    return model


def documents(name, *samples):
    """Inputs as the processors of retrieval models make them."""
    inputs = FAMILY_CASES[CASES[name]].inputs(*samples)
    inputs.pop("token_type_ids", None)
    if name.startswith("colqwen"):
        del inputs["mm_token_type_ids"]
    if name.startswith("colqwen"):  # patches are padded to those of the largest picture
        parts = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
        inputs["pixel_values"] = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    return inputs


def prompts(name):
    case = FAMILY_CASES[CASES[name]]
    return [case.prompt(0, seed=1), case.prompt(2, seed=2)]


def vectors(model, inputs, method):
    with torch.no_grad(), feathervlm.prune(model, method) as pruning:
        output = model(**inputs)
    return getattr(output, "embeddings", output), pruning.report


def max_sim(queries, pages):
    """Late interaction: the best match of every query vector, added up."""
    return torch.einsum("qd,nd->qn", queries, pages).amax(1).sum()


@pytest.mark.parametrize("name", RETRIEVAL[:4])
def test_vectors_in_a_tuple_are_the_same(name):
    model, inputs = retriever(name), documents(name, *prompts(name))
    whole, _ = vectors(model, inputs, FEATHER)
    with torch.no_grad(), feathervlm.prune(model, FEATHER):
        assert torch.equal(model(**inputs, return_dict=False)[0], whole)


@pytest.mark.parametrize("name", RETRIEVAL)
@pytest.mark.parametrize("attention", selected([in_gate(True, "sdpa"), in_gate(False, "eager")]))
def test_vectors_are_those_of_the_tokens_that_stay(name, attention):
    model, inputs = retriever(name, attention), documents(name, *prompts(name))
    method = methods.Uniform(layer=2, stride=2)
    found, report = vectors(model, inputs, method)
    rows, there = report.row_mask, inputs["attention_mask"].bool()
    assert torch.equal(rows, kept_rows(report, there))
    assert (found[~rows] == 0).all()
    torch.testing.assert_close(found[rows].norm(dim=-1), torch.ones(int(rows.sum())))
    with hidden(model, report.layout.mask, there, report, method), torch.no_grad():
        output = model(**inputs)
    right = getattr(output, "embeddings", output)
    torch.testing.assert_close(found[rows], right[rows], **TOLERANCE)
    query = torch.nn.functional.normalize(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    for page, expected, stays in zip(found, right, rows, strict=True):
        # A row of zeros matches nothing: it has the similarity of padding.
        score = max_sim(query, expected[stays]) if (query @ expected[stays].T).amax(1).min() > 0 else None
        assert score is None or torch.allclose(max_sim(query, page), score, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "method"),
    selected(
        in_gate(way == "feather" or (place + number) % 12 == 0, name, way)
        for place, name in enumerate(RETRIEVAL)
        for number, way in enumerate(METHODS)
    ),
)
def test_a_page_has_the_same_vectors_in_any_batch(name, method):
    model, samples = retriever(name), prompts(name)
    refused = FAMILY_CASES[CASES[name]].refuses
    if name == "colmodernvbert":
        refused = {**refuses_renumbering(), "tome": "packs or masks", "ailurus": "packs or masks"}
        refused |= refuses_freezing("hands its keys to no cache")
    if method in refused:
        with pytest.raises(Unprunable, match=refused[method]):
            vectors(model, documents(name, *samples), METHODS[method])
        return
    together, _ = vectors(model, documents(name, *samples), METHODS[method])
    for row, one in enumerate(samples):
        alone, report = vectors(model, documents(name, one), METHODS[method])
        torch.testing.assert_close(together[row, -alone.shape[1] :], alone[0], **TOLERANCE)
        assert ((alone[0] != 0).any(-1) == report.row_mask[0]).all()


@torch.no_grad()
def test_queries_without_pictures_are_not_touched():
    model, case = retriever("colqwen2"), FAMILY_CASES["qwen2_vl"]
    query = {key: value for key, value in case.inputs(case.prompt(seed=4)).items() if key != "mm_token_type_ids"}
    plain = model(**query).embeddings
    with feathervlm.prune(model, FEATHER) as pruning:
        model(**documents("colqwen2", *prompts("colqwen2")))
        assert torch.equal(model(**query).embeddings, plain)
    assert not pruning.report.pruned


def test_a_retrieval_model_is_as_it_was_after_an_error_before_its_base_model():
    model, inputs = retriever("colqwen2"), documents("colqwen2", *prompts("colqwen2"))
    with torch.no_grad():
        before = model(**inputs).embeddings
    with feathervlm.prune(model, "fastervlm"):
        with pytest.raises((RuntimeError, ValueError)):
            model(**{**inputs, "pixel_values": inputs["pixel_values"][:, :3]})
        with torch.no_grad():
            model(**inputs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).embeddings, before)


# Heads that read the states themselves.


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1])])
def test_a_classifier_of_prompts_reads_the_last_token(labels):
    case = FAMILY_CASES["gemma3"]
    config = tf.Gemma3Config(**{**case.model().config.to_dict(), "num_labels": 3})
    model = build(tf.Gemma3ForSequenceClassification, config, "sdpa")
    samples, method = [case.prompt(0, 1, seed=1), case.prompt(2, seed=2)], methods.Uniform(layer=4, stride=2)
    inputs = case.inputs(*samples)
    with torch.no_grad(), feathervlm.prune(model, method) as pruning:
        output = model(**inputs, labels=labels)
    with hidden(model, pruning.report.layout.mask, inputs["attention_mask"], pruning.report, method), torch.no_grad():
        expected = model(**inputs, labels=labels)
    torch.testing.assert_close(output.logits, expected.logits, **TOLERANCE)
    if labels is not None:
        torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)


def test_a_classifier_that_averages_over_dropped_tokens_is_refused():
    model = build(tf.ModernVBertForSequenceClassification, modern_vbert(classifier_pooling="mean"), "sdpa")
    with pytest.raises(Unprunable, match="averages over all tokens"):
        feathervlm.prune(model, "uniform:layer=2")
    feathervlm.prune(model.model, "uniform:layer=2").remove()


@torch.no_grad()
def test_a_classifier_of_tokens_keeps_the_length_of_the_prompt():
    model = build(tf.ModernVBertForTokenClassification, modern_vbert(), "sdpa")
    inputs = FAMILY_CASES["idefics3"].inputs(*prompts("colmodernvbert"))
    method = methods.Uniform(layer=2, stride=2)
    with feathervlm.prune(model, method) as pruning:
        logits = model(**inputs).logits
    rows = pruning.report.row_mask
    with hidden(model, pruning.report.layout.mask, inputs["attention_mask"], pruning.report, method):
        expected = model(**inputs).logits
    torch.testing.assert_close(logits[rows], expected[rows], **TOLERANCE)
