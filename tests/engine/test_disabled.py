"""Unpruned runs inside a block, the repr of the handle, warnings and log messages."""

import logging
import threading
import warnings

import pytest
import torch
from transformers import StaticCache

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, Schedule, Stage
from feathervlm.core import Given
from feathervlm.core.errors import UnprunedWarning
from laws import generate, traces

FEATHER = "feather:layers=2+4,keep=0.4"
PROMPTS = [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2)]


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first[:2], second[:2], strict=True))


@pytest.mark.parametrize("method", [FEATHER, "tome", "visionzip", "before-llm:method=(fastv)"])
def test_a_block_runs_unpruned_and_leaves_the_report(method):
    llava, inputs = tiny.llava(), tiny.batch(*PROMPTS)
    expected = generate(llava, inputs)
    with torch.no_grad():
        logits = llava(**inputs).logits
    with feathervlm.prune(llava, method) as pruning:
        pruned = generate(llava, inputs)
        report = pruning.report
        assert not torch.equal(pruned[1], expected[1])
        attached = traces(llava)
        with pruning.disabled():
            assert same(generate(llava, inputs), expected)
            with torch.no_grad():  # the encoder runs inside this forward
                assert torch.equal(llava(**inputs).logits, logits)
        assert pruning.report is report
        assert traces(llava) == attached
        assert same(generate(llava, inputs), pruned)
        assert pruning.report is not report


def test_blocks_can_be_nested_and_left_by_an_exception():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[0])
    expected = generate(llava, inputs)
    with feathervlm.prune(llava, FEATHER) as pruning:
        pruned = generate(llava, inputs)
        with pruning.disabled():
            with pruning.disabled():
                assert same(generate(llava, inputs), expected)
            assert same(generate(llava, inputs), expected)
            with pytest.raises(ZeroDivisionError), pruning.disabled():
                raise ZeroDivisionError
            assert same(generate(llava, inputs), expected)
        assert same(generate(llava, inputs), pruned)
        with pytest.raises(ZeroDivisionError), pruning.disabled():
            raise ZeroDivisionError
        assert same(generate(llava, inputs), pruned)


def test_a_block_holds_for_its_thread_alone():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[0])
    expected = generate(llava, inputs)
    with feathervlm.prune(llava, FEATHER) as pruning:
        pruned = generate(llava, inputs)
        other = []
        with pruning.disabled():
            thread = threading.Thread(target=lambda: other.append(generate(llava, inputs)))
            thread.start()
            thread.join()
            assert same(generate(llava, inputs), expected)
        assert same(other[0], pruned)


@pytest.mark.parametrize("text", ["llama", "mistral"])
@pytest.mark.parametrize("image", [False, True])
@torch.no_grad()
def test_a_pruned_cache_is_continued_as_pruned(text, image):
    """A later turn inside the block runs on the pruned cache, and no token of its own image is dropped."""
    llava, first = tiny.llava(text), tiny.batch(PROMPTS[1])
    later = tiny.prompt(int(image), seed=5)
    with feathervlm.prune(llava, FEATHER) as pruning:
        cache = llava(**first, use_cache=True).past_key_values
        report = pruning.report
        with pruning.disabled():
            turn = {key: value for key, value in tiny.batch(later).items() if key != "attention_mask"}
            logits = llava(**turn, past_key_values=cache).logits
            step = llava(input_ids=torch.tensor([[7]]), past_key_values=cache).logits
    whole = tiny.batch([*PROMPTS[1], *later, 7])
    whole["pixel_values"] = torch.cat([first["pixel_values"], *([turn["pixel_values"]] if image else [])])
    every = torch.arange(2 * tiny.SIDE**2, (2 + image) * tiny.SIDE**2)  # of the later image all tokens stay
    stages = [Stage(stage.layer, Given([torch.cat([stage.kept[0], every])])) for stage in report.stages]
    with feathervlm.prune(llava, Schedule(*stages)):
        expected = llava(**whole).logits
    torch.testing.assert_close(torch.cat([logits, step], 1), expected[:, len(PROMPTS[1]) :], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_cache_filled_in_a_block_is_not_pruned():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[0])
    step = torch.tensor([[7]])
    cache = llava(**inputs, use_cache=True).past_key_values
    expected = llava(input_ids=step, past_key_values=cache).logits
    with feathervlm.prune(llava, FEATHER) as pruning:
        with pruning.disabled():
            cache = llava(**inputs, use_cache=True).past_key_values
        assert torch.equal(llava(input_ids=step, past_key_values=cache).logits, expected)
        assert pruning.report.reason == "no prompt has been run yet"


@torch.no_grad()
def test_static_caches_in_a_block():
    """One that was pruned is decoded as pruned, beside one that is not."""
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[0])

    def static():
        return StaticCache(config=llava.config.get_text_config(), max_cache_len=120)

    def steps(cache):
        words = [torch.tensor([[word]]) for word in (7, 8, 9)]
        return torch.cat([llava(input_ids=word, past_key_values=cache).logits for word in words], 1)

    unpruned = static()
    first = llava(**inputs, past_key_values=unpruned).logits
    expected = torch.cat([first, steps(unpruned)], 1)
    with feathervlm.prune(llava, FEATHER) as pruning:
        caches = static(), static()
        for cache in caches:
            llava(**inputs, past_key_values=cache)
        pruned = steps(caches[0])
        with pruning.disabled():
            plain = static()
            assert torch.equal(llava(**inputs, past_key_values=plain).logits, first)
            torch.testing.assert_close(steps(caches[1]), pruned)
            assert torch.equal(torch.cat([first, steps(plain)], 1), expected)


def test_chunked_prefill_is_allowed_in_a_block():
    llava, inputs = tiny.llava(), tiny.batch(PROMPTS[0])
    expected = generate(llava, inputs, prefill_chunk_size=16)
    with feathervlm.prune(llava, FEATHER) as pruning:
        with pruning.disabled():
            assert same(generate(llava, inputs, prefill_chunk_size=16), expected)
        with pytest.raises(PruningError, match="prefill_chunk_size"):
            generate(llava, inputs, prefill_chunk_size=16)


def test_the_handle_says_what_it_does():
    llava = tiny.llava()
    with feathervlm.prune(llava, FEATHER) as pruning:
        start = f"Pruning('{pruning.name}', LlavaForConditionalGeneration, layers=[2, 4], "
        assert repr(pruning) == f"{start}active)"
        with pruning.disabled():
            assert repr(pruning) == f"{start}disabled)"
    assert repr(pruning) == f"{start}removed)"
    with pruning.disabled():  # of a removed pruning nothing is left to disable
        assert repr(pruning) == f"{start}removed)"


def test_what_cannot_be_pruned_warns_in_a_category_of_its_own():
    llama = tiny.llama()
    with pytest.warns(UnprunedWarning, match="runs unpruned"):
        pruning = feathervlm.prune(llama, "fastv", strict=False)
    assert repr(pruning) == f"Pruning('{pruning.name}', LlamaForCausalLM, nothing to prune)"
    with pruning.disabled(), pruning:
        pass
    with feathervlm.prune(tiny.llava(), FEATHER, strict=False) as pruning, pytest.warns(UnprunedWarning):
        pruning.model(inputs_embeds=torch.zeros(1, 9, 64))


def test_what_is_only_to_be_known_is_logged(caplog):
    llava = tiny.llava("mistral")
    with caplog.at_level(logging.INFO, "feathervlm"), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with feathervlm.prune(llava, "fastv:layer=3") as pruning:
            generate(llava, tiny.batch(PROMPTS[0]))
            messages = [record.message for record in caplog.records]
            assert messages == [f"Attached {pruning!r}.", *(f"{pruning.name}: {note}" for note in pruning.report.notes)]
            assert len(messages) == 2
