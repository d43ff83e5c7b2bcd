"""Threads, exceptions and interrupts: a pruned model serves one forward at a time and recovers from anything."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, methods
from laws import generate, traces

FEATHER = methods.Feather(layers=(2, 4), keep=0.4)
PROMPTS = [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2)]


@torch.no_grad()
def logits_of(llava, *prompts):
    return llava(**tiny.batch(*prompts)).logits


def interrupt(llava, error, layer=4):
    """Make the next forward fail in a layer."""

    def fail(module, args):
        handle.remove()
        raise error

    handle = llava.model.language_model.layers[layer].register_forward_pre_hook(fail)


def test_threads_with_a_model_each_get_what_they_get_alone():
    models = [tiny.llava(text, seed=seed) for seed, text in enumerate(["llama", "mistral", "qwen3"])]
    specs = ["feather:layers=2+4,keep=0.4", "fastv:layer=2", "uniform:layer=1"]

    def work(llava, spec, prompt):
        results = []
        with feathervlm.prune(llava, spec) as pruning:
            for _ in range(4):
                tokens, logits, _ = generate(llava, tiny.batch(prompt))
                results.append((tokens, logits, pruning.report.to_dict()["stages"]))
        return results

    jobs = list(zip(models, specs, [*PROMPTS, PROMPTS[0]], strict=True))
    alone = [work(*job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(lambda job: work(*job), jobs))
    for one, many in zip(alone, together, strict=True):
        for (tokens, logits, stages), (again, same, kept) in zip(one, many, strict=True):
            assert torch.equal(tokens, again)
            assert torch.equal(logits, same)
            assert stages == kept


@pytest.mark.parametrize("continued", [False, True])
def test_a_second_thread_on_one_model_is_turned_away_and_disturbs_nothing(continued):
    llava = tiny.llava()
    inside, proceed = threading.Event(), threading.Event()

    def wait(module, args):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            proceed.wait(30)

    with feathervlm.prune(llava, FEATHER) as pruning:
        expected = [logits_of(llava, prompt) for prompt in PROMPTS]
        past = generate(llava, tiny.batch(PROMPTS[0], PROMPTS[1]))[2]
        attached = traces(llava)
        step = {"input_ids": torch.tensor([[5], [6]]), "past_key_values": past}
        call = partial(llava, **(step if continued else tiny.batch(PROMPTS[1])))
        handle = llava.model.language_model.layers[3].register_forward_pre_hook(wait)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(logits_of, llava, PROMPTS[0])
            assert inside.wait(30)
            with pytest.raises(PruningError, match="one forward at a time, and another thread is in one"):
                call()
            proceed.set()
            assert torch.equal(first.result(), expected[0])
        handle.remove()
        assert traces(llava) == attached
        assert pruning.report.record.layout.counts == (tiny.SIDE**2,)
        assert torch.equal(logits_of(llava, PROMPTS[1]), expected[1])


def test_threads_that_share_a_model_get_an_error_or_the_right_answer():
    llava = tiny.llava("mistral")

    def work(prompt):
        inputs, outcomes = tiny.batch(prompt), []
        for _ in range(12):
            try:
                outcomes.append(generate(llava, inputs, tokens=3)[1])
            except PruningError as error:
                outcomes.append(str(error))
        return outcomes

    with feathervlm.prune(llava, FEATHER):
        expected = [generate(llava, tiny.batch(prompt), tokens=3)[1] for prompt in PROMPTS]
        attached = traces(llava)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(work, PROMPTS))
        for right, outcomes in zip(expected, results, strict=True):
            for outcome in outcomes:
                assert (
                    "another thread is in one" in outcome if isinstance(outcome, str) else torch.equal(outcome, right)
                )
        assert traces(llava) == attached
        assert torch.equal(generate(llava, tiny.batch(PROMPTS[0]), tokens=3)[1], expected[0])


def test_a_forward_inside_a_forward_is_turned_away_and_disturbs_nothing():
    llava, errors = tiny.llava(), []

    def nest(module, args):
        handle.remove()
        try:
            logits_of(llava, PROMPTS[1])
        except PruningError as error:
            errors.append(str(error))

    with feathervlm.prune(llava, FEATHER):
        expected = logits_of(llava, PROMPTS[0])
        handle = llava.model.language_model.layers[3].register_forward_pre_hook(nest)
        assert torch.equal(logits_of(llava, PROMPTS[0]), expected)
        assert torch.equal(logits_of(llava, PROMPTS[0]), expected)
    assert len(errors) == 1
    assert "this one is in one" in errors[0]


@pytest.mark.parametrize("layer", range(6))
def test_an_exception_in_any_layer_leaves_no_hooks_and_the_next_call_works(layer):
    llava = tiny.llava("mistral")
    with feathervlm.prune(llava, FEATHER) as pruning:
        expected, attached, report = logits_of(llava, *PROMPTS), traces(llava), pruning.report
        interrupt(llava, RuntimeError("on purpose"), layer)
        with pytest.raises(RuntimeError, match="on purpose"):
            logits_of(llava, PROMPTS[0])
        assert traces(llava) == attached
        assert pruning.report is report
        assert torch.equal(logits_of(llava, *PROMPTS), expected)


def test_an_exception_in_a_decoding_step_leaves_no_hooks():
    llava = tiny.llava("mistral")
    inputs = tiny.batch(*PROMPTS)
    with feathervlm.prune(llava, FEATHER):
        expected, attached = logits_of(llava, *PROMPTS), traces(llava)
        past = generate(llava, inputs)[2]
        interrupt(llava, RuntimeError("on purpose"))
        with pytest.raises(RuntimeError, match="on purpose"), torch.no_grad():
            llava(input_ids=torch.tensor([[5], [6]]), past_key_values=past)
        assert traces(llava) == attached
        assert torch.equal(logits_of(llava, *PROMPTS), expected)


def test_an_exception_in_the_vision_tower_leaves_no_hooks():
    llava = tiny.llava()
    with feathervlm.prune(llava, methods.KNN(layer=2, count=9)):
        expected, attached = logits_of(llava, *PROMPTS), traces(llava)
        inputs = {**tiny.batch(PROMPTS[0]), "pixel_values": torch.zeros(1, 3, 40, 40)}
        with pytest.raises(ValueError, match="match"):
            llava(**inputs)
        assert traces(llava) == attached
        assert torch.equal(logits_of(llava, *PROMPTS), expected)


def test_generation_goes_on_after_an_interrupt():
    llava = tiny.llava()
    with feathervlm.prune(llava, FEATHER):
        expected, attached = generate(llava, tiny.batch(*PROMPTS))[1], traces(llava)
        interrupt(llava, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            generate(llava, tiny.batch(*PROMPTS))
        assert traces(llava) == attached
        assert torch.equal(generate(llava, tiny.batch(*PROMPTS))[1], expected)


def test_a_pruned_model_cannot_be_copied_until_it_is_released():
    llava = tiny.llava()
    with feathervlm.prune(llava, FEATHER):
        expected = logits_of(llava, PROMPTS[0])
        with pytest.raises(PruningError, match="cannot be copied or pickled"):
            copy.deepcopy(llava)
        assert torch.equal(logits_of(llava, PROMPTS[0]), expected)
    assert torch.equal(logits_of(copy.deepcopy(llava), PROMPTS[0]), logits_of(llava, PROMPTS[0]))
