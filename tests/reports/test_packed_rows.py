"""Several samples in one row, and several turns in one training example (axolotl-ai-cloud/axolotl#3131,
huggingface/nanoVLM#204).

Every picture is chosen from by the question of its own sample, or of the turn that follows it.
"""

from functools import cache

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import feathervlm
import tiny_models as tiny
from feathervlm import Unprunable
from laws import TOLERANCE
from method_cases import METHODS, in_gate, representatives, selected

SAMPLES = [
    tiny.prompt(1, seed=1, after=9),
    tiny.prompt(0, seed=5),
    tiny.prompt(2, seed=2, after=7),
    tiny.prompt(1, seed=3, before=7),
]
ANSWER = 3


MODELS = cache(tiny.llava)


def model(attention="sdpa"):
    return MODELS(attention=attention)


def kept(report, row=0):
    return [stage.kept[row].tolist() for stage in report.stages]


def pixels(samples):
    return torch.cat([tiny.batch(sample)["pixel_values"] for sample in samples if tiny.IMAGE in sample])


def numbers(samples):
    """Return the number of the sample of every position."""
    return torch.cat([torch.full((len(sample),), index) for index, sample in enumerate(samples)])[None]


def packed(samples, form):
    """Return the inputs of one row with all samples."""
    ids = torch.tensor([[token for sample in samples for token in sample]])
    restarting = torch.cat([torch.arange(len(sample)) for sample in samples])[None]
    inputs = {"input_ids": ids, "pixel_values": pixels(samples), "position_ids": restarting, "use_cache": False}
    number = numbers(samples)
    blocks = (number[:, :, None] == number[:, None, :]).tril()[:, None]
    lengths = torch.tensor([0, *map(len, samples)]).cumsum(0).int()
    return (
        inputs
        | {
            "positions": {},
            "blocks": {"attention_mask": blocks},
            "additive": {"attention_mask": torch.where(blocks, 0.0, torch.finfo(torch.float32).min)},
            "lengths": {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": 99, "max_length_k": 99},
            "index": {"seq_idx": number.int()},
            "numbers": {"attention_mask": number + 1},
        }[form]
    )


def labels_of(samples):
    """Return the labels of a row, whose samples end with answers."""
    return torch.tensor([[label for sample in samples for label in [-100] * (len(sample) - ANSWER) + sample[-ANSWER:]]])


@cache
def alone(name, supervised=False, attention="sdpa"):
    """Return the logits and the kept tokens of every sample, run by itself."""
    results = []
    with feathervlm.prune(model(attention), METHODS[name]) as pruning, torch.no_grad():
        for sample in SAMPLES:
            inputs = tiny.batch(sample)
            if supervised:
                inputs["labels"] = labels_of([sample])
            logits = model(attention)(**inputs).logits[0]
            results.append((logits, kept(pruning.report) if tiny.IMAGE in sample else None))
    return results


def check(expected, report, logits):
    """Check one row of all samples against each by itself."""
    starts = torch.tensor([0, *map(len, SAMPLES)]).cumsum(0).tolist()
    for start, sample, (single, _) in zip(starts[:-1], SAMPLES, expected, strict=True):
        text = torch.tensor(sample) != tiny.IMAGE
        torch.testing.assert_close(logits[start : start + len(sample)][text], single[text], atol=TOLERANCE, rtol=0)
    together, offset = kept(report), 0
    for sample, (_, stages) in zip(SAMPLES, expected, strict=True):
        count = sample.count(tiny.IMAGE)
        for stage, one in zip(together, stages or [[]] * len(together), strict=True):
            assert [token - offset for token in stage if offset <= token < offset + count] == one
        offset += count


CASES = selected(in_gate(name in representatives(), name) for name in METHODS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("supervised", [False, True], ids=["prompts", "answers"])
def test_packed_equals_one_by_one(name, supervised):
    inputs = packed(SAMPLES, "positions")
    if supervised:
        inputs["labels"] = labels_of(SAMPLES)
    expected = alone(name, supervised)
    with feathervlm.prune(model(), METHODS[name]) as pruning, torch.no_grad():
        logits = model()(**inputs).logits[0]
        check(expected, pruning.report, logits)


FORMS = [("sdpa", "blocks"), *((kind, form) for kind in ("sdpa", "eager") for form in ("positions", "additive"))]


@pytest.mark.parametrize(("attention", "form"), FORMS)
def test_every_form_that_keeps_samples_apart_is_read(attention, form):
    inputs, expected = packed(SAMPLES, form), alone("feather", attention=attention)
    with feathervlm.prune(model(attention), METHODS["feather"]) as pruning, torch.no_grad():
        logits = model(attention)(**inputs).logits[0]
        check(expected, pruning.report, logits)


@pytest.mark.parametrize("form", ["lengths", "index", "numbers"])
def test_each_picture_is_asked_by_its_own_sample_whatever_attention_makes_of_the_form(form):
    inputs = packed(SAMPLES, form)
    if form == "numbers":
        inputs["labels"] = labels_of(SAMPLES)
    del inputs["position_ids"]
    with feathervlm.prune(model(), METHODS["feather"]) as pruning, torch.no_grad():
        model()(**inputs)
    queries = pruning.report.queries[0]
    ends = torch.tensor([len(sample) for sample in SAMPLES]).cumsum(0) - 1
    answer = ANSWER if form == "numbers" else 0
    assert queries == [int(ends[index]) - answer for index in (0, 2, 2, 3)]


def test_rows_of_several_samples_are_padded_and_batched():
    rows = [SAMPLES[:2], SAMPLES[2:]]
    length = max(sum(map(len, row)) for row in rows) + 3
    ids, number = torch.full((2, length), tiny.PAD), torch.zeros(2, length, dtype=torch.long)
    ids[0, : sum(map(len, rows[0]))] = packed(rows[0], "positions")["input_ids"][0]
    number[0, : sum(map(len, rows[0]))] = numbers(rows[0])[0] + 1
    ids[1, -sum(map(len, rows[1])) :] = packed(rows[1], "positions")["input_ids"][0]  # padded on the other side
    number[1, -sum(map(len, rows[1])) :] = numbers(rows[1])[0] + 1
    blocks = (number[:, :, None] == number[:, None, :]).tril() & (number > 0)[:, None, :]
    inputs = {"input_ids": ids, "pixel_values": pixels(SAMPLES), "attention_mask": blocks[:, None]}
    expected = alone("feather")
    with feathervlm.prune(model(), METHODS["feather"]) as pruning, torch.no_grad():
        model()(**inputs)
    first, second = kept(pruning.report, 0), kept(pruning.report, 1)
    assert first == expected[0][1]
    images = 2 * tiny.SIDE**2
    assert [[token for token in stage if token < images] for stage in second] == expected[2][1]
    assert [[token - images for token in stage if token >= images] for stage in second] == expected[3][1]


def test_an_image_in_two_samples_is_refused():
    inputs = packed(SAMPLES, "positions")
    inputs["position_ids"][0, 20:] -= 20  # in the middle of the first image
    with feathervlm.prune(model(), METHODS["feather"]), pytest.raises(Unprunable, match="lies in two packed samples"):
        model()(**inputs)


TURNS = [tiny.prompt(1, seed=1, after=9), [7, *tiny.prompt(2, seed=2, after=8)], [8, *tiny.prompt(0, seed=3, before=5)]]
ANSWERS = [[31, 32, 33, 34], [41, 42, 43], [51, 52]]
FIRST_ONLY = {"renumber": "positions='renumber'", "all": "over='all'"}


def conversation():
    """Return a training example of three turns, the first two with images."""
    ids = [token for turn, answer in zip(TURNS, ANSWERS, strict=True) for token in [*turn, *answer]]
    labels = [label for turn, answer in zip(TURNS, ANSWERS, strict=True) for label in [*[-100] * len(turn), *answer]]
    inputs = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels]), "pixel_values": pixels(TURNS)}
    return {**inputs, "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def turn_by_turn(name):
    """Return the logits of the answers' tokens in a conversation with a cache, and what every turn kept."""
    cache, logits, reports, past = None, [], [], 0
    with feathervlm.prune(model(), METHODS[name]) as pruning, torch.no_grad():
        for turn, answer in zip(TURNS, ANSWERS, strict=True):
            inputs = {"input_ids": torch.tensor([turn])}
            if tiny.IMAGE in turn:
                inputs["pixel_values"] = pixels([turn])
            for ids in (inputs, {"input_ids": torch.tensor([answer])}):
                length = ids["input_ids"].shape[1]
                mask = torch.ones(1, past + length, dtype=torch.long)
                output = model()(**ids, attention_mask=mask, past_key_values=cache, use_cache=True)
                cache, past = output.past_key_values, past + length
                logits.append(output.logits[0, -1:] if ids is inputs else output.logits[0, :-1])
            reports.append(kept(pruning.report) if tiny.IMAGE in turn else None)
    return torch.cat(logits), reports


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_asked_by_the_turn_that_follows_it(name):
    try:
        expected, reports = turn_by_turn(name)
    except Unprunable as error:
        pytest.skip(str(error))
    inputs = conversation()
    with feathervlm.prune(model(), METHODS[name]) as pruning, torch.no_grad():
        logits = model()(**inputs).logits[0]
    asked = (inputs["labels"][0, 1:] != -100).nonzero()[:, 0]
    torch.testing.assert_close(logits[asked], expected, atol=TOLERANCE, rtol=0)
    first = tiny.SIDE**2
    for stage, one, two in zip(kept(pruning.report), reports[0], reports[1], strict=True):
        assert [token for token in stage if token < first] == one
        assert [token - first for token in stage if token >= first] == two


def test_a_prompt_that_several_answers_share_asks_with_its_last_token():
    prompt, answers = SAMPLES[0], [[31, 32, 33], [41, 42], [51]]
    ids = [*prompt, *(token for answer in answers for token in answer)]
    number = torch.tensor([0] * len(prompt) + [row for row, answer in enumerate(answers) for _ in answer])[None]
    own = torch.tensor([0] * len(prompt) + [1] * sum(map(len, answers)))[None]
    blocks = ((number[:, :, None] == number[:, None, :]) | (own[:, None, :] == 0)).tril()[:, None]
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": pixels(SAMPLES[:1]), "attention_mask": blocks}
    expected = alone("feather")[0][1]
    with feathervlm.prune(model(), METHODS["feather"]) as pruning, torch.no_grad():
        model()(**inputs)
    assert pruning.report.queries == [[len(prompt) - 1]]
    assert kept(pruning.report) == expected


def packed_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attend within samples as flash attention does: by cumulative lengths, else by positions."""
    length, ids = query.shape[2], kwargs.get("position_ids")
    lengths = kwargs.get("cu_seq_lens_q")
    if lengths is not None:
        assert int(lengths[-1]) == length
        number = torch.searchsorted(lengths.long(), torch.arange(length), right=True)
    else:
        number = torch.nn.functional.pad(ids[0].diff() != 1, (1, 0)).cumsum(0)
    mask = (number[:, None] == number).tril()
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
    return output.transpose(1, 2), None


@pytest.mark.parametrize("form", ["positions", "lengths"])
def test_packing_for_flash_attention_follows_the_tokens_that_stay(form, monkeypatch):
    name = "flash_packed"
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, packed_attention)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, lambda *args, **kwargs: None)
    expected, inputs = alone("feather"), packed(SAMPLES, form)
    config = model().config.get_text_config()
    monkeypatch.setattr(config, "_attn_implementation_internal", name)
    with feathervlm.prune(model(), METHODS["feather"]) as pruning, torch.no_grad():
        logits = model()(**inputs).logits[0]
        check(expected, pruning.report, logits)
