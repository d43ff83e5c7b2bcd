"""All modes of `generate` on a pruned LLaVA, against a full forward with the same tokens kept."""

import copy
from functools import cache

import pytest
import torch
from transformers import DynamicCache

import feathervlm
import tiny_models as tiny
from feathervlm import methods
from laws import TOLERANCE, frozen, generate
from method_cases import crossed

FEATHER = methods.Feather(layers=(2, 4), keep=0.4)
METHODS = {
    "feather": FEATHER,
    "fixed": methods.Feather(layers=(2, 4), keep=0.4, fixed=True),
    "renumbered": methods.PyramidDrop(layers=(1, 3, 4)),
    "layer-0": methods.Uniform(layer=0),
}
TEXTS = ["llama", "mistral"]  # mistral slides a window of 24 over images of 36


@cache
def model(text="llama", attention="sdpa"):
    return tiny.llava(text, attention=attention)


ATTENTION = ["sdpa", "eager"]
BOTH = pytest.mark.parametrize(("text", "attention"), crossed(TEXTS, ATTENTION))


def rescored(llava, inputs, reports, tokens, method=FEATHER):
    """Logits of the new tokens from one frozen forward without a cache."""
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens[:, :-1]], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    with feathervlm.prune(llava, frozen(method, *reports, row=0)), torch.no_grad():
        return llava(**whole).logits[:, -tokens.shape[1] :]


@BOTH
def test_beam_scores_are_those_of_a_full_forward(text, attention):
    llava = model(text, attention)
    for seed in range(3):
        inputs = tiny.batch(tiny.prompt(1, seed=seed))
        with feathervlm.prune(llava, FEATHER) as pruning:
            out = llava.generate(
                **inputs,
                max_new_tokens=6,
                num_beams=4,
                num_return_sequences=3,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
        for tokens, score in zip(out.sequences[:, inputs["input_ids"].shape[1] :], out.sequences_scores, strict=True):
            chances = rescored(llava, inputs, [pruning.report], tokens[None]).log_softmax(-1)
            expected = chances[0].gather(1, tokens[:, None]).mean()
            torch.testing.assert_close(score, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("text", TEXTS)
def test_beams_of_a_ragged_batch_are_those_of_each_sample(text):
    llava, prompts = (
        model(text),
        [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2, after=3), tiny.prompt(0, seed=3)],
    )
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    with feathervlm.prune(llava, FEATHER):
        together = llava.generate(**tiny.batch(*prompts), **options)[:, -6:]
        alone = [llava.generate(**tiny.batch(prompt), **options)[0, -6:] for prompt in prompts]
    assert together.tolist() == [tokens.tolist() for tokens in alone]


@BOTH
def test_sampled_sequences_come_from_the_logits_of_a_full_forward(text, attention):
    llava, inputs = model(text, attention), tiny.batch(tiny.prompt(1, seed=4))
    torch.manual_seed(0)
    with feathervlm.prune(llava, FEATHER) as pruning:
        tokens, logits, _ = generate(llava, inputs, do_sample=True, num_return_sequences=4)
    assert len({tuple(sample) for sample in tokens.tolist()}) > 1
    assert len({tuple(kept.tolist()) for kept in pruning.report.stages[0].kept}) == 1
    for sample, expected in zip(tokens, logits, strict=True):
        again = rescored(llava, inputs, [pruning.report], sample[None])[0]
        torch.testing.assert_close(again, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("text", "method"), crossed(TEXTS, METHODS))
def test_prompt_lookup_equals_greedy(text, method):
    llava = model(text)
    for seed in range(3):
        prompt = tiny.prompt(1, seed=seed)
        inputs = tiny.batch([*prompt, *prompt[-6:]])  # a repetition to look up
        with feathervlm.prune(llava, METHODS[method]):
            greedy, _, _ = generate(llava, inputs, tokens=12)
            lookup, _, _ = generate(llava, inputs, tokens=12, prompt_lookup_num_tokens=3)
        assert torch.equal(greedy, lookup)


@pytest.mark.parametrize(("text", "method"), crossed(TEXTS, METHODS))
def test_assisted_decoding_equals_greedy(text, method):
    llava = model(text)
    for seed in range(2):
        inputs = tiny.batch(tiny.prompt(1, seed=seed))
        assistant = copy.deepcopy(llava)
        with feathervlm.prune(llava, METHODS[method]):
            greedy, _, _ = generate(llava, inputs, tokens=12)
            assisted, _, _ = generate(llava, inputs, tokens=12, assistant_model=assistant)
        assert torch.equal(greedy, assisted)


def test_assistant_and_model_may_both_be_pruned():
    llava, inputs = model(), tiny.batch(tiny.prompt(1, seed=3))
    assistant = copy.deepcopy(llava)
    with feathervlm.prune(llava, FEATHER), feathervlm.prune(assistant, "fastv:layer=2,keep=0.5"):
        greedy, _, _ = generate(llava, inputs, tokens=16)
        assisted, _, _ = generate(llava, inputs, tokens=16, assistant_model=assistant)
    assert torch.equal(greedy, assisted)


@pytest.mark.parametrize(("text", "attention", "method"), crossed(TEXTS, ATTENTION, METHODS))
def test_without_a_cache_the_prompt_alone_selects(text, attention, method):
    llava, inputs = (
        model(text, attention),
        tiny.batch(tiny.prompt(1, seed=5), tiny.prompt(2, seed=6)),
    )
    with feathervlm.prune(llava, METHODS[method]) as pruning:
        tokens, logits, _ = generate(llava, inputs)
        kept = [sample.tolist() for sample in pruning.report.stages[-1].kept]
        again, uncached, _ = generate(llava, inputs, use_cache=False)
        assert [sample.tolist() for sample in pruning.report.stages[-1].kept] == kept
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, uncached, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_another_image_with_the_same_words_is_selected_anew(use_cache):
    llava, inputs = model(), tiny.batch(tiny.prompt(1, seed=7))
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    with feathervlm.prune(llava, FEATHER) as pruning:
        generate(llava, inputs, use_cache=use_cache)
        first = pruning.report.stages[0].kept[0].tolist()
        tokens, _, _ = generate(llava, other, use_cache=use_cache)
        second = pruning.report.stages[0].kept[0].tolist()
    with feathervlm.prune(llava, FEATHER) as pruning:
        assert torch.equal(generate(llava, other)[0], tokens)
    assert pruning.report.stages[0].kept[0].tolist() == second != first


def test_another_image_is_selected_anew_when_longer_text_follows_without_a_cache():
    llava, prompt = model(), tiny.prompt(1, seed=7)
    inputs = tiny.batch(prompt)
    longer = {**tiny.batch([*prompt, 9, 10]), "pixel_values": inputs["pixel_values"].flip(-1)}
    with feathervlm.prune(llava, FEATHER) as pruning, torch.no_grad():
        llava(**inputs, use_cache=False)
        llava(**longer, use_cache=False)
        kept = pruning.report.stages[0].kept[0].tolist()
    with feathervlm.prune(llava, FEATHER) as pruning, torch.no_grad():
        llava(**longer)
    assert pruning.report.stages[0].kept[0].tolist() == kept


def turn(inputs, tokens, prompt):
    """Return the inputs of the next turn: all tokens so far and a new prompt, with the new images only."""
    new = tiny.batch(prompt)
    new["input_ids"] = torch.cat([inputs["input_ids"], tokens, new["input_ids"]], 1)
    new["attention_mask"] = torch.ones_like(new["input_ids"])
    return new


def with_all_images(inputs, *turns):
    """Return the last turn's tokens with the images of every turn."""
    pixels = [given["pixel_values"] for given in (inputs, *turns) if "pixel_values" in given]
    return {**turns[-1], "pixel_values": torch.cat(pixels)}


@pytest.mark.parametrize(
    ("text", "attention", "config", "method", "images"),
    crossed(TEXTS, ATTENTION, [True, False], ["feather", "fixed", "layer-0"], [0, 1, 2], share=4),
)
def test_a_second_turn_on_the_cache_equals_a_full_forward(text, attention, images, method, config):
    llava = model(text, attention)
    first = tiny.batch(tiny.prompt(1, seed=8))
    past = DynamicCache(config=llava.config.get_text_config()) if config else DynamicCache()
    with feathervlm.prune(llava, METHODS[method]) as pruning:
        tokens, _, past = generate(llava, first, past_key_values=past)
        reports = [pruning.report]
        second = turn(first, tokens, tiny.prompt(images, seed=9))
        again, logits, past = generate(llava, second, past_key_values=past)
        if images:
            assert pruning.report is not reports[0]
            assert pruning.report.record.layout.counts == (images * tiny.SIDE**2,)
            reports.append(pruning.report)
        else:
            assert pruning.report is reports[0]
        third = turn(second, again, tiny.prompt(0, seed=10))
        last, last_logits, _ = generate(llava, third, past_key_values=past)
    expected = rescored(llava, with_all_images(first, second), reports, again, METHODS[method])
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    expected = rescored(llava, with_all_images(first, second, third), reports, last, METHODS[method])
    torch.testing.assert_close(last_logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("text", TEXTS)
def test_an_image_may_come_after_a_turn_of_text(text):
    llava, first = model(text), tiny.batch(tiny.prompt(0, seed=11))
    with feathervlm.prune(llava, FEATHER) as pruning:
        tokens, _, past = generate(llava, first, tokens=40)
        assert not pruning.report.pruned
        second = turn(first, tokens, tiny.prompt(1, seed=12))
        again, logits, _ = generate(llava, second, past_key_values=past)
    expected = rescored(llava, second, [pruning.report], again)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ATTENTION)
def test_renumbered_positions_continue_into_a_turn_of_text(attention):
    llava, method = model("llama", attention), METHODS["renumbered"]
    inputs = tiny.batch(tiny.prompt(1, seed=13))
    with feathervlm.prune(llava, method) as pruning:
        tokens, _, past = generate(llava, inputs)
        second = turn(inputs, tokens, tiny.prompt(0, seed=14))
        again, logits, _ = generate(llava, second, past_key_values=past)
    whole = {**with_all_images(inputs, second), "input_ids": torch.cat([second["input_ids"], again[:, :-1]], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    with feathervlm.prune(llava, frozen(method, pruning.report)), torch.no_grad():
        expected = llava(**whole).logits[:, -again.shape[1] :]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
