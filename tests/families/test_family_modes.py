"""Tokens that wait, are frozen, or skip a half of the layers, on every family, or the words of a refusal."""

import pytest
import torch

import feathervlm
from family_cases import FAMILY_CASES, with_attention
from feathervlm import LastTokenAttention, Schedule, Stage, Top, Unprunable
from feathervlm.core import Random
from laws import frozen, hidden

TOKENS = 3
NO_ROPE = LastTokenAttention(rope=False)


def modes(case):
    """The stage after frozen tokens reads the keys that the layer before it has made of these apart."""
    first, second = case.layers
    after, keep = Stage(second, Top(NO_ROPE, 0.3)), Random(0.5)
    return {
        "freeze": Schedule(Stage(first, keep, leave="freeze"), after),
        "wait": Schedule(Stage(first, keep, leave="wait"), Stage(second, Random(0.3, seed=1))),
        "no-mlp": Schedule(Stage(first, keep, leave="freeze", skip="mlp"), after),
        "no-attention": Schedule(Stage(first, keep, leave="freeze", skip="attention"), after),
    }


def refused(case, mode):
    """The words of the refusal; None if the mode works."""
    if mode in ("freeze", "no-attention") and case.state:
        return "carries a state along the sequence and has no keys"
    if mode == "no-mlp" and case.name.startswith("ernie"):
        return "is given moe_mm_token_type_ids with a value for every token"
    return None


@torch.no_grad()
def run(model, inputs, tokens=0):
    """Logits of the prompt, or of generated tokens and these."""
    if not tokens:
        return model(**inputs).logits
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**inputs, max_new_tokens=tokens, **options)
    return out.sequences[:, -tokens:], torch.stack(out.logits, 1)


@pytest.fixture
def case(name):
    return FAMILY_CASES[name]


@pytest.mark.parametrize(("name", "attention", "mode"), with_attention(["freeze", "wait", "no-mlp", "no-attention"]))
def test_a_mode_holds_on_every_family_or_is_refused_by_name(case, attention, mode):
    model, schedule, words = case.model(attention), modes(case)[mode], refused(case, mode)
    if words is not None:
        with pytest.raises(Unprunable, match=words):
            feathervlm.prune(model, schedule)
        return
    inputs = case.inputs(*case.prompts())
    with feathervlm.prune(model, schedule) as pruning:
        logits, report = run(model, inputs), pruning.report
        tokens, steps = run(model, inputs, TOKENS)
        for sample, prompt in enumerate(case.prompts()):
            alone = run(model, case.inputs(prompt))[0]
            torch.testing.assert_close(alone, logits[sample, -len(alone) :], atol=case.tolerance, rtol=1e-3)
    extended = case.inputs(*case.prompts(), extra=tokens[:, :-1].tolist())
    with feathervlm.prune(model, frozen(schedule, report)), torch.no_grad():
        again = model(**extended, use_cache=False).logits[:, -TOKENS:]
    torch.testing.assert_close(again, steps, atol=case.tolerance, rtol=1e-3)
    if case.state or (attention == "eager" and "llama4" in case.name):
        return  # no mask hides a token from a state, and that of this attention is made inside
    mask, attended = report.record.layout.mask, inputs["attention_mask"].bool()
    with hidden(model, mask, attended, report, schedule):
        expected = run(model, inputs)
    text = attended & ~mask
    torch.testing.assert_close(logits[text], expected[text], atol=case.tolerance, rtol=1e-3)
