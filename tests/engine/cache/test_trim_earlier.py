"""Stages that trim the cache of earlier layers, against masks that hide the dropped tokens from the answer only."""

import copy
from contextlib import contextmanager
from functools import cache, partial

import pytest
import torch
from transformers import DynamicCache, StaticCache

import feathervlm
import tiny_models as tiny
from feathervlm import LastTokenAttention, PruningError, Schedule, Stage, Top, methods
from feathervlm.core import Random
from laws import TOLERANCE, generate
from method_cases import crossed

SCORE = LastTokenAttention(rope=False)
CUT = {
    "one": Schedule(Stage(3, Top(SCORE, 0.4), cache="all")),
    "last": Schedule(Stage(5, Top(SCORE, 0.4), cache="all")),
    "open count": Schedule(Stage(3, Top(SCORE, 0.3) | Random(0.2), cache="all")),
    "second": Schedule(Stage(1, Top(SCORE, 0.7)), Stage(4, Top(SCORE, 0.3), cache="all")),
    "first": Schedule(Stage(2, Top(SCORE, 0.7), cache="all"), Stage(4, Top(SCORE, 0.3))),
    "both": Schedule(Stage(2, Top(SCORE, 0.7), cache="all"), Stage(4, Top(SCORE, 0.3), cache="all")),
    "ivc-prune": methods.IVCPrune(layer=3, keep=0.4),
}
TEXTS = ["llama", "mistral"]  # mistral slides a window of 24 over images of 36
WINDOW = 24


@cache
def model(text="llama", attention="sdpa"):
    return tiny.llava(text, attention=attention)


@pytest.fixture
def method(name):
    return CUT[name]


CROSSED = pytest.mark.parametrize(("text", "name"), crossed(TEXTS, CUT))
EVERY = pytest.mark.parametrize("name", CUT)


def stages_of(method):
    return tuple(method if isinstance(method, Schedule) else method.schedule())


@contextmanager
def hiding(llava, ids, turns, method):
    """Return masks for one sample that hide dropped tokens as the definition says.

    Args:
        llava: unpruned.
        ids: long (1, sequence), all turns.
        turns: for each turn with images its report, the position where it starts, and where its answer does.
        method: whose stages they are.
    """
    sequence, visual = ids.shape[1], ids[0] == tiny.IMAGE
    rows = torch.arange(sequence)
    sliding = llava.config.get_text_config().model_type == "mistral"
    causal = rows[:, None] >= rows
    if sliding:
        causal &= rows[:, None] - rows < WINDOW
    masks = []
    for index in range(tiny.LAYERS):
        allowed = causal.clone()
        for report, start, answer in turns:
            places = [int(place) for place in visual.nonzero()[:, 0] if start <= place < answer]
            for done, stage in zip(report.stages, stages_of(method), strict=True):
                gone = [place for number, place in enumerate(places) if number not in done.kept[0].tolist()]
                if index >= done.layer:
                    allowed[:, gone] = False
                elif stage.cache == "all":
                    allowed[answer:, gone] = False
        masks.append(allowed | torch.eye(sequence, dtype=torch.bool))

    def hide(mask, module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None]}

    layers = zip(llava.get_decoder().layers, masks, strict=True)
    handles = [layer.register_forward_pre_hook(partial(hide, mask), with_kwargs=True) for layer, mask in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def rescored(llava, inputs, tokens, turns, method):
    """Return the logits of an answer from the whole sequence at once."""
    ids = torch.cat([inputs["input_ids"], tokens[:, :-1]], 1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with hiding(llava, ids, turns, method):
        return llava(**whole).logits[:, -tokens.shape[1] :]


def turn(inputs, tokens, prompt):
    """Return the inputs of the next turn: all tokens so far and a new prompt, with the new images only."""
    new = tiny.batch(prompt)
    new["input_ids"] = torch.cat([inputs["input_ids"], tokens, new["input_ids"]], 1)
    new["attention_mask"] = torch.ones_like(new["input_ids"])
    return new


@CROSSED
def test_an_answer_sees_the_tokens_that_stayed_in_every_layer(text, method):
    llava = model(text)
    for seed in range(3):
        prompt = tiny.prompt(1 + seed % 2, seed=seed)
        inputs = tiny.batch(prompt)
        with feathervlm.prune(llava, method) as pruning:
            tokens, logits, past = generate(llava, inputs, tokens=8)
        expected = rescored(llava, inputs, tokens, [(pruning.report, 0, len(prompt))], method)
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        if text == "llama":
            stored = [layer.keys.shape[-2] for layer in past.layers]
            words = len(prompt) - prompt.count(tiny.IMAGE) + 7
            assert stored == [words + visual for visual in pruning.report.cached_per_layer[0]]


@pytest.mark.parametrize("text", TEXTS)
def test_the_prompt_itself_is_as_without_the_cut(text):
    llava, inputs = model(text), tiny.batch(tiny.prompt(1, seed=3), tiny.prompt(2, seed=4))
    for method in CUT.values():
        plain = Schedule(*(Stage(stage.at, stage.select) for stage in stages_of(method)))
        with feathervlm.prune(llava, method), torch.no_grad():
            logits = llava(**inputs).logits
        with feathervlm.prune(llava, plain), torch.no_grad():
            assert torch.equal(llava(**inputs).logits, logits)


@pytest.mark.parametrize(("text", "attention", "name"), crossed(TEXTS, ["sdpa", "eager"], CUT))
def test_a_ragged_batch_decodes_as_one_by_one(text, method, attention):
    llava = model(text, attention)
    prompts = [tiny.prompt(images, seed=seed, after=4 + seed) for seed, images in enumerate((1, 2, 0, 1))]
    with feathervlm.prune(llava, method):
        tokens, logits, _ = generate(llava, tiny.batch(*prompts), tokens=8)
        for row, prompt in enumerate(prompts):
            alone, alone_logits, _ = generate(llava, tiny.batch(prompt), tokens=8)
            assert torch.equal(tokens[row : row + 1], alone)
            torch.testing.assert_close(logits[row : row + 1], alone_logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("text", "config", "images", "name"), crossed(TEXTS, [True, False], [0, 1, 2], CUT, share=4))
def test_later_turns_run_on_what_was_left(text, method, images, config):
    llava, prompts = (
        model(text),
        [tiny.prompt(1, seed=8), tiny.prompt(images, seed=9), tiny.prompt(0, seed=10)],
    )
    past = DynamicCache(config=llava.config.get_text_config()) if config else DynamicCache()
    inputs, answer, turns, pixels, done = None, None, [], [], []
    with feathervlm.prune(llava, method) as pruning:
        for prompt in prompts:
            given = tiny.batch(prompt) if inputs is None else turn(inputs, answer, prompt)
            start, before = (0 if inputs is None else inputs["input_ids"].shape[1]), pruning.report
            answer, logits, past = generate(llava, given, past_key_values=past)
            if pruning.report is not before:
                turns.append((pruning.report, start, given["input_ids"].shape[1]))
            pixels += [given["pixel_values"]] if "pixel_values" in given else []
            inputs = given
            done.append(({**given, "pixel_values": torch.cat(pixels)}, answer, list(turns), logits))
    for given, tokens, known, logits in done:
        torch.testing.assert_close(logits, rescored(llava, given, tokens, known, method), atol=TOLERANCE, rtol=0)


@EVERY
def test_static_caches_decode_like_growing_ones(method, monkeypatch):
    monkeypatch.setattr(
        "feathervlm.engine.cache.static.BUCKET", 5
    )  # below what leaves here, where no count is known beforehand
    llava = model()
    for prompts in ([tiny.prompt(1, seed=1)], [tiny.prompt(1, seed=2), tiny.prompt(2, seed=3)]):
        inputs = tiny.batch(*prompts)
        with feathervlm.prune(llava, method) as pruning:
            tokens, logits, _ = generate(llava, inputs, tokens=8)
            again, static, past = generate(llava, inputs, tokens=8, cache_implementation="static")
        assert torch.equal(tokens, again)
        torch.testing.assert_close(logits, static, atol=TOLERANCE, rtol=0)
        assert isinstance(past, StaticCache)
        assert all(layer.keys.shape[-2] < layer.logical_capacity for layer in past.layers)
        assert len(pruning.report.cached_per_layer[0]) == tiny.LAYERS


@CROSSED
def test_lookup_assistants_and_beams_find_what_was_left(text, method):
    llava, prompt = model(text), tiny.prompt(1, seed=2)
    assistant = copy.deepcopy(llava)
    inputs = tiny.batch([*prompt, *prompt[-6:]])
    with feathervlm.prune(llava, method):
        greedy, _, _ = generate(llava, inputs, tokens=16)
        assert torch.equal(generate(llava, inputs, tokens=16, prompt_lookup_num_tokens=3)[0], greedy)
        assert torch.equal(generate(llava, inputs, tokens=16, assistant_model=assistant)[0], greedy)
    options = {"max_new_tokens": 6, "num_beams": 4, "do_sample": False, "output_scores": True}
    with feathervlm.prune(llava, method) as pruning:
        out = llava.generate(**inputs, **options, return_dict_in_generate=True)
    length = inputs["input_ids"].shape[1]
    tokens = out.sequences[:, length:]
    chances = rescored(llava, inputs, tokens, [(pruning.report, 0, length)], method).log_softmax(-1)
    torch.testing.assert_close(
        out.sequences_scores[0], chances[0].gather(1, tokens[0, :, None]).mean(), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("text", ["llama", "qwen3"])
@EVERY
def test_the_report_tells_what_is_seen_from_what_is_cached(text, method):
    llava, inputs = model(text), tiny.batch(tiny.prompt(2, seed=3))
    whole = generate(llava, inputs, tokens=1)[2]
    with feathervlm.prune(llava, method) as pruning:
        pruned = generate(llava, inputs, tokens=1)[2]
    numbers = [sum(layer.keys.numel() for layer in cache.layers) for cache in (pruned, whole)]
    report = pruning.report
    assert report.kv_bytes_ratio == pytest.approx(numbers[0] / numbers[1], rel=1e-12)
    plain = Schedule(*(Stage(stage.at, stage.select) for stage in stages_of(method)))
    with feathervlm.prune(llava, plain) as pruning, torch.no_grad():
        llava(**inputs)
    assert report.tokens_per_layer == pruning.report.tokens_per_layer == pruning.report.cached_per_layer
    assert report.flops_ratio == pruning.report.flops_ratio
    assert report.kv_bytes_ratio < pruning.report.kv_bytes_ratio


def test_a_second_turn_counts_what_the_first_has_left():
    llava, method = model(), CUT["one"]
    first, second = tiny.batch(tiny.prompt(1, seed=9)), tiny.batch(tiny.prompt(2, seed=10))
    with feathervlm.prune(llava, method) as pruning, torch.no_grad():
        past = llava(**first, use_cache=True).past_key_values
        before = [layer.keys.shape[-2] for layer in past.layers]
        llava(input_ids=second["input_ids"], pixel_values=second["pixel_values"], past_key_values=past)
    stored = [layer.keys.shape[-2] for layer in past.layers]
    everything = first["input_ids"].shape[1] + second["input_ids"].shape[1]
    assert len(set(before)) == len(set(stored)) == 1
    assert pruning.report.costs.past(0) == before
    assert pruning.report.kv_bytes_ratio == pytest.approx(sum(stored) / (everything * tiny.LAYERS), rel=1e-12)


def test_without_a_cache_there_is_nothing_to_cut():
    llava, inputs = model(), tiny.batch(tiny.prompt(1, seed=11))
    plain = Schedule(*(Stage(stage.at, stage.select) for stage in stages_of(CUT["both"])))
    with feathervlm.prune(llava, CUT["both"]) as pruning, torch.no_grad():
        cut = llava(**inputs, use_cache=False)
    note = "nothing is cached, so layers before {} see all tokens again at every step"
    assert pruning.report.notes == [note.format(2), note.format(4)]
    with feathervlm.prune(llava, plain), torch.no_grad():
        assert torch.equal(llava(**inputs, use_cache=False).logits, cut.logits)
    assert cut.past_key_values is None


def test_a_cut_cache_says_so_when_the_pruning_is_gone():
    llava, inputs = model(), tiny.batch(tiny.prompt(1, seed=12))
    with feathervlm.prune(llava, CUT["one"]):
        past = generate(llava, inputs)[2]
    with pytest.raises(PruningError, match="has been removed"):
        llava(input_ids=torch.tensor([[7]]), past_key_values=past)


def test_only_two_kinds_of_cache_policy_exist():
    with pytest.raises(PruningError, match="cache='none' is not one of later, all"):
        Stage(3, Top(SCORE, 0.4), cache="none")
