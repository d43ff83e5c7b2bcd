"""Packed questions get the stock model's logits, and no question sees another."""

from dataclasses import replace

import pytest
import torch

from training import align, packed, text
from training.build import BOS, Size, build_model, build_processor, to_pixels
from training.world.tasks import sample

SMALL = Size(layers=3, width=64, heads=2, hidden=96, tower_layers=1, tower_width=32, tower_hidden=48)


@pytest.fixture(scope="module")
def model():
    return build_model(SMALL, 0).eval()


def test_packed_logits_are_those_of_the_stock_forward(model):
    processor = build_processor(SMALL)
    scene, _ = sample("locate", 0, 0)
    prompts = ["where is the small red circle ?", "how many signs are there ?", "is there a blue thing ?"]
    tokens = [text.encode(f"{prompt} assistant:") for prompt in prompts]
    reach = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (reach - len(row)) for row in tokens])
    inner = model.model
    with torch.no_grad():
        pixels = to_pixels([scene])
        start = inner.language_model.embed_tokens.weight[BOS].expand(1, 1, -1)
        prefix = torch.cat([start, inner.multi_modal_projector(align.see(model, pixels))], 1)
        states = packed.run(inner.language_model, prefix, inner.language_model.embed_tokens(ids)[None])[0][0]
        for prompt, row, state in zip(prompts, tokens, states, strict=True):
            inputs = processor(images=scene.image, text=f"<image> {prompt} assistant:", return_tensors="pt")
            torch.testing.assert_close(inputs["pixel_values"], pixels)
            assert inputs["input_ids"][0, -len(row) :].tolist() == row
            stock = model(**inputs).logits[0, -len(row) :]
            # bfloat16, if the machine multiplies in it, keeps eight bits; these logits span about one unit.
            torch.testing.assert_close(model.lm_head(state[: len(row)]), stock, atol=0.02, rtol=0.02)


def test_a_question_sees_the_image_and_itself_alone(model):
    torch.manual_seed(0)
    prefix, questions = torch.randn(1, 9, 64), torch.randn(1, 4, 6, 64)
    changed = questions.clone()
    changed[0, 1] += 1
    with torch.no_grad():
        before, after = (packed.run(model.model.language_model, prefix, part)[0] for part in (questions, changed))
        moved, _ = packed.run(model.model.language_model, prefix + 1, questions)
    same = [torch.equal(before[0, i], after[0, i]) for i in range(4)]
    assert same == [True, False, True, True]
    assert not any(torch.equal(before[0, i], moved[0, i]) for i in range(4))


def test_questions_that_share_a_row_are_as_if_each_had_its_own(model):
    torch.manual_seed(0)
    decoder, prefix = model.model.language_model, torch.randn(2, 9, 64)
    questions = [torch.randn(2, 1, length, 64) for length in (3, 5, 4)]
    row = torch.cat([*questions, torch.zeros(2, 1, 2, 64)], 2)
    segments = torch.tensor([1] * 3 + [2] * 5 + [3] * 4 + [0] * 2).expand(2, 1, -1)
    with torch.no_grad():
        alone = torch.cat([packed.run(decoder, prefix, question)[0] for question in questions], 2)
        together, _ = packed.run(decoder, prefix, row, segments)
    # Only rounding differs, of bfloat16 where the machine multiplies in it.
    torch.testing.assert_close(together[:, :, :12], alone, atol=0.03, rtol=0.03)


def test_text_alone_is_causal(model):
    torch.manual_seed(0)
    one = torch.randn(2, 12, 64)
    other = one.clone()
    other[:, 7:] += 1
    with torch.no_grad():
        a, b = (packed.run(model.model.language_model, part)[0] for part in (one, other))
    assert torch.equal(a[:, :7], b[:, :7])
    assert not torch.equal(a[:, 7:], b[:, 7:])


@pytest.mark.parametrize("asked", [False, True])
def test_a_model_without_a_layer_is_that_with_the_layer_left_out(model, asked):
    torch.manual_seed(0)
    prefix, questions = torch.randn(1, 9, 64), torch.randn(1, 2, 6, 64) if asked else None
    shorter = build_model(replace(SMALL, layers=2), 0).model.language_model
    whole = model.model.language_model
    for skipped in range(3):
        kept = [layer for i, layer in enumerate(whole.layers) if i != skipped]
        for layer, source in zip(shorter.layers, kept, strict=True):
            layer.load_state_dict(source.state_dict())
        with torch.no_grad():
            expected, _ = packed.run(shorter, prefix, questions)
            found, _ = packed.run(whole, prefix, questions, skip=(skipped,))
        torch.testing.assert_close(found, expected)


def test_a_tap_is_the_state_between_two_layers(model):
    """It is what the decoder returns if the later layers are left out, but for the weights of the last norm."""
    torch.manual_seed(0)
    decoder = model.model.language_model
    prefix, questions = torch.randn(1, 9, 64), torch.randn(1, 2, 6, 64)
    with torch.no_grad():
        _, tapped = packed.run(decoder, prefix, questions, taps=(1, 2))
        for tap in (1, 2):
            expected, _ = packed.run(decoder, prefix, questions, skip=range(tap, 3))
            torch.testing.assert_close(packed.unit(tapped[tap]) * decoder.norm.weight, expected)
