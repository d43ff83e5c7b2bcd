"""Training through a pruned model: loss and gradients are those of the kept tokens."""

from functools import cache

import pytest
import torch

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, Unprunable, VisualLayout, methods
from laws import OLD, TOLERANCE, hidden, layout_of
from method_cases import MODES, crossed

METHODS = {
    "feather": methods.Feather(layers=(2, 4), keep=0.4),
    "fixed": methods.Feather(layers=(2, 4), keep=0.4, fixed=True),
    "layer-0": methods.Uniform(layer=0),
    "look-ahead": methods.PyramidDrop(layers=(1, 3, 4), form="baseline"),
    "frozen": MODES["freeze-on"],
    "waiting": MODES["wait"],
}
FEATHER = METHODS["feather"]


@cache
def model(text="llama", attention="sdpa"):
    return tiny.llava(text, attention=attention)


def supervised(*prompts, answer=4, side="right"):
    """Return inputs whose last `answer` tokens are labels."""
    inputs = tiny.batch(*prompts, side=side)
    labels = torch.full_like(inputs["input_ids"], -100)
    for sample, mask in enumerate(inputs["attention_mask"]):
        last = mask.nonzero()[-answer:, 0]
        labels[sample, last] = inputs["input_ids"][sample, last]
    return {**inputs, "labels": labels}


def gradients(llava, inputs):
    """Return the loss and the gradient of every parameter."""
    llava.train()
    llava.zero_grad()
    loss = llava(**inputs).loss
    loss.backward()
    llava.eval()
    return loss.detach(), {name: weight.grad for name, weight in llava.named_parameters() if weight.grad is not None}


def same_gradients(one, other, **tolerance):
    torch.testing.assert_close(one[0], other[0], **tolerance)
    assert one[1].keys() == other[1].keys()
    for name in one[1]:
        torch.testing.assert_close(one[1][name], other[1][name], **tolerance, msg=lambda text, name=name: name + text)


PROMPTS = [
    tiny.prompt(1, seed=1, after=9),
    tiny.prompt(2, seed=2, after=7),
    tiny.prompt(0, seed=3, after=12),
]


@pytest.mark.parametrize(
    ("method", "attention", "text", "side"),
    crossed(METHODS, ["sdpa", "eager"], ["llama", "qwen3"], ["left", "right"], share=3),
)
def test_loss_and_gradients_equal_those_with_dropped_tokens_hidden(method, attention, text, side):
    llava = model(text, attention)
    for prompts in (PROMPTS[:1], PROMPTS):
        inputs = supervised(*prompts, side=side)
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with feathervlm.prune(llava, METHODS[method]) as pruning:
            pruned = gradients(llava, inputs)
        plain = gradients(llava, inputs)
        with hidden(
            llava, inputs["input_ids"] == tiny.IMAGE, inputs["attention_mask"], pruning.report, METHODS[method]
        ):
            dense = gradients(llava, inputs)
        same_gradients(pruned, dense, atol=1e-4, rtol=1e-3)
        assert (pruned[0] - plain[0]).abs() > 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    llava, inputs = tiny.llava(), supervised(*PROMPTS)
    with feathervlm.prune(llava, FEATHER):
        plain = gradients(llava, inputs)
        enable = llava.gradient_checkpointing_enable if OLD else llava.activation_checkpointing_enable
        enable({"use_reentrant": reentrant})
        llava.enable_input_require_grads()
        if OLD:
            with pytest.raises(Unprunable, match="Gradient checkpointing repeats hooks"):
                gradients(llava, inputs)
        else:
            same_gradients(gradients(llava, inputs), plain, atol=0, rtol=0)


def test_the_answer_does_not_choose_its_own_tokens():
    llava = model()
    for seed in range(4):
        prompt = tiny.prompt(1, seed=seed)
        with feathervlm.prune(llava, FEATHER) as pruning, torch.no_grad():
            alone = tiny.batch(prompt)
            llava(**alone)
            asked = [stage.kept[0].tolist() for stage in pruning.report.stages]
            inputs = supervised([*prompt, 11, 12, 13], tiny.prompt(2, seed=seed), answer=3)
            inputs["pixel_values"][0] = alone["pixel_values"][0]
            llava(**inputs)
            assert [stage.kept[0].tolist() for stage in pruning.report.stages] == asked
            llava(**{**inputs, "labels": None})
            assert [stage.kept[0].tolist() for stage in pruning.report.stages] != asked


def test_a_given_query_asks():
    llava, prompt = model(), tiny.prompt(1, seed=5, after=9)
    inputs = tiny.batch(prompt)
    with feathervlm.prune(llava, FEATHER) as pruning, torch.no_grad():
        llava(**{**tiny.batch(prompt[:-4]), "pixel_values": inputs["pixel_values"]})
        asked = pruning.report.stages[0].kept[0].tolist()
    layout = layout_of(inputs["input_ids"], tiny.IMAGE, tiny.SIDE)
    layout = VisualLayout(layout.mask, layout.grids, query=torch.tensor([len(prompt) - 5]))
    with feathervlm.prune(llava, FEATHER, layout=layout) as pruning, torch.no_grad():
        llava(**inputs)
        assert pruning.report.stages[0].kept[0].tolist() == asked


def test_right_padding_equals_one_by_one():
    llava = model()
    inputs = tiny.batch(*PROMPTS, side="right")
    with feathervlm.prune(llava, FEATHER) as pruning, torch.no_grad():
        together, report = llava(**inputs).logits, pruning.report
        for row, prompt in enumerate(PROMPTS):
            alone = llava(**tiny.batch(prompt)).logits[0]
            text = torch.tensor(prompt) != tiny.IMAGE
            torch.testing.assert_close(
                together[row, : len(prompt)][text], alone[text], atol=TOLERANCE, rtol=0, msg=str(row)
            )
            for stage, single in zip(report.stages, pruning.report.stages if row < 2 else report.stages, strict=True):
                assert stage.kept[row].tolist() == single.kept[row if row == 2 else 0].tolist()


def test_a_label_right_after_an_image_is_refused_by_name():
    inputs = supervised(*PROMPTS[:2])
    first_text = PROMPTS[1].index(tiny.IMAGE) + tiny.SIDE**2
    inputs["labels"][1, first_text] = 7
    with feathervlm.prune(model(), FEATHER) as pruning:
        with pytest.raises(PruningError, match="Sample 1 has a label right after a visual token"):
            model()(**inputs)
        inputs["labels"][1, first_text] = -100
        model()(**inputs)
        assert pruning.report.pruned


def test_labels_of_one_call_are_forgotten_in_the_next():
    llava, inputs = model(), supervised(*PROMPTS[:2])
    shorter = tiny.batch(tiny.prompt(1, seed=6))
    with feathervlm.prune(llava, FEATHER) as pruning, torch.no_grad():
        llava.model(**shorter)
        expected = pruning.report.stages[0].kept[0].tolist()
        llava(**inputs)
        llava.model(**shorter)
        assert pruning.report.stages[0].kept[0].tolist() == expected
