"""Log-probabilities of padded completions: prompts padded on the left, completions on the right, as trainers for
preferences and rewards pass them (huggingface/trl#5785, huggingface/trl#3733).

The token that asks is the last one of the prompt, as in the rollout, whatever the completion and the padding.
"""

from functools import cache

import pytest
import torch
from torch.nn.functional import pad

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, Unprunable, VisualLayout
from laws import TOLERANCE, generate, layout_of
from method_cases import METHODS, in_gate, representatives, selected

PROMPTS = [tiny.prompt(1, seed=1), tiny.prompt(2, seed=2), tiny.prompt(1, seed=3, after=11), tiny.prompt(0, seed=4)]
LENGTHS = [10, 7, 4, 1]
LONGEST = max(LENGTHS)


@cache
def model():
    return tiny.llava()


def kept(report):
    return [[sample.tolist() for sample in stage.kept] for stage in report.stages]


@cache
def rollout(name):
    """Return prompts, completions with their padding, the logits of the rollout, and the tokens kept in it."""
    inputs = tiny.batch(*PROMPTS)
    with feathervlm.prune(model(), METHODS[name]) as pruning, torch.no_grad():
        new, logits, _ = generate(model(), inputs, tokens=LONGEST)
        real = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
        return inputs, new.masked_fill(~real, tiny.PAD), real, logits, kept(pruning.report)


def teacher_forced(inputs, completion, real):
    """Return the inputs of a forward of prompts and completions."""
    mask = torch.cat([inputs["attention_mask"], real.long()], 1)
    ids = torch.cat([inputs["input_ids"], completion], 1)
    return {**inputs, "input_ids": ids, "attention_mask": mask}


def flush_left(inputs):
    """Return inputs with the padding on the left moved to the right, and how far each row went."""
    shift = inputs["attention_mask"].argmax(1)
    index = (torch.arange(inputs["input_ids"].shape[1]) + shift[:, None]) % inputs["input_ids"].shape[1]
    rolled = {name: inputs[name].gather(1, index) for name in ("input_ids", "attention_mask")}
    return {**inputs, **rolled}, shift


CASES = selected(in_gate(name in representatives(), name) for name in METHODS)


@pytest.mark.parametrize("name", CASES)
def test_a_forward_with_completions_keeps_what_the_rollout_kept(name):
    inputs, completion, real, logits, expected = rollout(name)
    forward, start = teacher_forced(inputs, completion, real), inputs["input_ids"].shape[1] - 1
    length = forward["input_ids"].shape[1]
    with feathervlm.prune(model(), METHODS[name]) as pruning, torch.no_grad():
        for positions in (LONGEST + 1, torch.arange(start, length), torch.arange(-LONGEST - 1, 0)):
            output = model()(**forward, logits_to_keep=positions).logits[:, :-1]
            assert kept(pruning.report) == expected
            torch.testing.assert_close(output[real], logits[real], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", selected(in_gate(name in ("feather", "sparsevlm"), name) for name in METHODS))
@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_tell_where_the_prompt_ends(name, side):
    inputs, completion, real, logits, expected = rollout(name)
    forward, start = teacher_forced(inputs, completion, real), inputs["input_ids"].shape[1]
    shift = torch.zeros(len(PROMPTS), dtype=torch.long)
    if side == "right":
        forward, shift = flush_left(forward)
    place = torch.arange(start, start + LONGEST) - shift[:, None]
    labels = torch.full_like(forward["input_ids"], -100).scatter(1, place, completion.masked_fill(~real, -100))
    if side == "right":
        forward["position_ids"] = (forward["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for given in ({"labels": labels}, {"shift_labels": pad(labels[:, 1:], (0, 1), value=-100)}):
        with feathervlm.prune(model(), METHODS[name]) as pruning, torch.no_grad():
            output = model()(**forward, **given).logits
            assert kept(pruning.report) == expected
        asked = output.gather(1, (place - 1)[..., None].expand(-1, -1, output.shape[-1]))
        torch.testing.assert_close(asked[real], logits[real], atol=TOLERANCE, rtol=0)


def given_queries(last, inputs):
    layout = layout_of(inputs["input_ids"], tiny.IMAGE, tiny.SIDE)
    images = last[:, None].expand(-1, 2)
    return {
        "number": {"query": int(last[0])},
        "from the end": {"query": int(last[0]) - inputs["input_ids"].shape[1]},
        "rows": {"query": last},
        "images": {"query": images},
        "function": {"query": lambda arguments: arguments["input_ids"].shape[1] - LONGEST - 1},
        "layout": {"layout": VisualLayout(layout.mask, layout.grids, query=last)},
        "layout of images": {"layout": VisualLayout(layout.mask, layout.grids, query=images)},
    }


@pytest.mark.parametrize("form", ["number", "from the end", "rows", "images", "function", "layout", "layout of images"])
def test_a_given_query_asks(form):
    inputs, completion, real, _, expected = rollout("feather")
    forward = teacher_forced(inputs, completion, real)
    last = torch.full((len(PROMPTS),), inputs["input_ids"].shape[1] - 1)
    with (
        feathervlm.prune(model(), METHODS["feather"], **given_queries(last, forward)[form]) as pruning,
        torch.no_grad(),
    ):
        model()(**forward)
        assert kept(pruning.report) == expected


def test_a_query_can_be_set_and_given_row_by_row():
    inputs, completion, real, _, expected = rollout("feather")
    forward, shift = flush_left(teacher_forced(inputs, completion, real))
    with feathervlm.prune(model(), METHODS["feather"]) as pruning, torch.no_grad():
        model().model(**forward)
        assert kept(pruning.report) != expected
        pruning.query = inputs["input_ids"].shape[1] - 1 - shift
        model().model(**forward)
        assert kept(pruning.report) == expected
        pruning.query = None
        model().model(**forward)
        assert kept(pruning.report) != expected


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (10_000, PruningError, "query=10000 has a position that an input of"),
        (torch.tensor([3, 3]), PruningError, "must be the position of the token that asks"),
        (torch.tensor([0.5]), PruningError, "must be the position of the token that asks"),
        ("end", PruningError, "query='end' must be the position"),
        (0, Unprunable, "The token at position 0 cannot ask for image 0 of row 0, which ends at position"),
        (10, Unprunable, "The prompt ends inside an image"),
    ],
    ids=["beyond", "rows", "fraction", "word", "before", "inside"],
)
def test_a_query_that_cannot_ask_is_refused(query, error, message):
    with feathervlm.prune(model(), METHODS["feather"], query=query), pytest.raises(error, match=message):
        model()(**tiny.batch(PROMPTS[0]))


def test_given_queries_hold_for_beams():
    inputs = tiny.batch(PROMPTS[0])
    options = {"num_beams": 2, "num_return_sequences": 2}
    with torch.no_grad():
        with feathervlm.prune(model(), METHODS["feather"]):
            expected, _, _ = generate(model(), inputs, **options)
        with feathervlm.prune(model(), METHODS["feather"], query=torch.tensor([len(PROMPTS[0]) - 1])):
            given, _, _ = generate(model(), inputs, **options)
    assert given.tolist() == expected.tolist()


def test_a_mask_of_four_dimensions_tells_padding():
    inputs, completion, real, _, expected = rollout("feather")
    forward = teacher_forced(inputs, completion, real)
    attended = forward["attention_mask"].bool()
    causal = torch.ones(attended.shape[1], attended.shape[1], dtype=torch.bool).tril()
    forward["attention_mask"] = (causal & attended[:, None, :])[:, None]
    forward["position_ids"] = (attended.cumsum(1) - 1).clamp(min=0)
    with feathervlm.prune(model(), METHODS["feather"]) as pruning, torch.no_grad():
        model()(**forward, logits_to_keep=LONGEST + 1)
        assert kept(pruning.report) == expected
        prompt = {**inputs, "attention_mask": forward["attention_mask"][..., :-LONGEST, :-LONGEST]}
        right, _ = flush_left(inputs)
        attended = right["attention_mask"].bool()
        size = attended.shape[1]
        blocks = (causal[:size, :size] & attended[:, None, :])[:, None]
        model()(**{**right, "attention_mask": blocks})
        assert kept(pruning.report) == expected
        model()(**prompt, position_ids=forward["position_ids"][:, :-LONGEST])
        assert kept(pruning.report) == expected


def test_the_header_of_the_answer_tells_where_prompts_end():
    header = [13, 14]
    prompts = [[*prompt[:-2], *header] for prompt in PROMPTS]
    with torch.no_grad(), feathervlm.prune(model(), METHODS["feather"], query=feathervlm.prompt_end(header)) as pruning:
        model()(**tiny.batch(*prompts))
        expected = kept(pruning.report)
        longer = [[*prompt, *range(20, 20 + length)] for prompt, length in zip(prompts, LENGTHS, strict=True)]
        inputs = tiny.batch(*longer, side="right") | {"pixel_values": tiny.batch(*prompts)["pixel_values"]}
        model()(**inputs)
        assert kept(pruning.report) == expected
        assert pruning.report.queries[0] == [len(prompts[0]) - 1]
        with pytest.raises(PruningError, match=r"Row 1 does not contain the tokens \[13, 14\]"):
            model()(**tiny.batch(prompts[0], PROMPTS[0]))
    with pytest.raises(PruningError, match="at least one"):
        feathervlm.prompt_end([])
