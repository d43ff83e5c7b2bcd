"""What the LLaVA family says about inputs, whichever way they come."""

from functools import cache

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessorPil, SiglipImageProcessor

import feathervlm
import tiny_models as tiny
from feathervlm import PruningError, Unprunable, methods
from feathervlm.engine.call import ModelCall
from feathervlm.families.llava import Llava

PROMPTS = [tiny.prompt(2, seed=1), tiny.prompt(0, seed=2), tiny.prompt(1, seed=3)]
GRID = (1, tiny.SIDE, tiny.SIDE)


@cache
def model(tower="clip"):
    return tiny.llava(tower=tower)


def encoded(llava, pixels):
    output = llava.get_image_features(pixel_values=pixels, output_hidden_states=True)
    return {"image": output}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@torch.no_grad()
def test_pixels_and_encoded_features_give_the_same_layout_and_features(tower, side):
    llava, inputs = model(tower), tiny.batch(*PROMPTS, side=side)
    family, ids = Llava(llava), inputs["input_ids"]
    outputs = encoded(llava, inputs["pixel_values"])
    pixels = ModelCall(dict(inputs))
    pixels.encoded["image"] = outputs["image"]
    features = ModelCall({"input_ids": ids, "mm_encoder_outputs": outputs})
    for call in (pixels, features):
        assert family.visual_source(call)
        layout = family.layout(call)
        assert [layout.shapes(sample) for sample in range(3)] == [[GRID, GRID], [], [GRID]]
        assert torch.equal(layout.mask, ids == tiny.IMAGE)
        states = llava.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        states = states[:, 1:] if tower == "clip" else states
        found = family.vision_features(call, layout)
        assert torch.equal(found[0], states[:2].flatten(0, 1))
        assert torch.equal(found[2, :36], states[2])


def test_text_brings_no_image():
    family = Llava(model())
    assert family.visual_source(ModelCall(tiny.batch(PROMPTS[1]))) == ()
    assert family.visual_source(ModelCall({"input_ids": torch.zeros(1, 1), "mm_encoder_outputs": None})) == ()


@torch.no_grad()
def test_placeholders_are_found_in_embeddings_too():
    llava, inputs = model(), tiny.batch(PROMPTS[0])
    embeds = llava.get_input_embeddings()(inputs["input_ids"])
    with feathervlm.prune(llava, "feather:layers=2+4") as pruning:
        expected = llava(**inputs).logits
        kept = pruning.report.stages[-1].kept[0].tolist()
        assert torch.equal(llava(inputs_embeds=embeds, pixel_values=inputs["pixel_values"]).logits, expected)
        assert pruning.report.stages[-1].kept[0].tolist() == kept


@torch.no_grad()
def test_positional_arguments_are_understood():
    llava, inputs = model(), tiny.batch(PROMPTS[0])
    with feathervlm.prune(llava, "feather:layers=2+4"):
        expected = llava(**inputs).logits
        assert torch.equal(llava(inputs["input_ids"], inputs["pixel_values"]).logits, expected)
        hidden = llava.model(inputs["input_ids"], inputs["pixel_values"])[0]
        assert torch.equal(llava.lm_head(hidden), expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (1, "Sample 0 has more image placeholders than there are image features"),
        (5, None),
    ],
)
def test_images_and_placeholders_that_do_not_match_are_an_error(images, message):
    llava = model()
    inputs = {**tiny.batch(*PROMPTS), "pixel_values": torch.randn(images, 3, 48, 48)}
    with (
        feathervlm.prune(llava, "feather:layers=2+4"),
        pytest.raises(PruningError if message else ValueError, match=message),
    ):
        llava(**inputs)


def test_half_an_image_is_an_error():
    inputs = tiny.batch(PROMPTS[2][:20] + PROMPTS[2][21:], PROMPTS[0])
    inputs["pixel_values"] = torch.randn(3, 3, 48, 48)
    with (
        feathervlm.prune(model(), "feather:layers=2+4"),
        pytest.raises(PruningError, match="Sample 0 has 1 image placeholders fewer"),
    ):
        model()(**inputs)


def test_features_that_are_no_square_need_a_layout():
    llava, inputs = model(), tiny.batch(PROMPTS[2])
    outputs = encoded(llava, inputs["pixel_values"])
    outputs["image"].pooler_output = [outputs["image"].pooler_output[0][:35]]
    with pytest.raises(Unprunable, match="35 tokens is not a square grid"):
        Llava(llava).layout(ModelCall({"input_ids": inputs["input_ids"], "mm_encoder_outputs": outputs}))


def test_features_of_several_layers_are_refused():
    llava = tiny.llava()
    llava.config.vision_feature_layer = [-2, -1]
    call = ModelCall(tiny.batch(PROMPTS[2]))
    with pytest.raises(Unprunable, match="features=projected"):
        Llava(llava).vision_features(call, Llava(llava).layout(call))


@torch.no_grad()
def test_knn_by_hand():
    llava, inputs = model(), tiny.batch(PROMPTS[2])
    with feathervlm.prune(llava, methods.KNN(layer=2, count=9)) as pruning:
        llava(**inputs)
    states = llava.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
    distance = torch.cdist(states, states) / states.shape[-1] ** 0.5
    density = (-distance.topk(5, largest=False).values.square().mean(-1)).exp()
    denser = density[None, :] > density[:, None]
    delta = distance.masked_fill(~denser, float("inf")).amin(-1)
    delta = torch.where(delta.isfinite(), delta, distance.max())
    torch.testing.assert_close(pruning.report.stages[0].scores[0], density * delta, atol=1e-5, rtol=1e-4)
    expected = (density * delta).topk(9).indices.sort().values
    assert pruning.report.stages[0].kept[0].tolist() == expected.tolist()


CROPPING = CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
SQUEEZING = SiglipImageProcessor(size={"height": 96, "width": 96})


@pytest.mark.parametrize("size", [(96, 96), (300, 151), (91, 270)])
def test_a_processor_that_pads_shows_more_than_the_picture(size):
    padding = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 90}, crop_size={"height": 90, "width": 90})
    white = Image.new("RGB", size, (255, 255, 255))
    shown = padding(white, do_normalize=False, return_tensors="pt")["pixel_values"][0].mean(0) > 0.75
    left, top, right, bottom = Llava.shown(padding, size)
    assert right - left == bottom - top == max(size)
    across = shown.any(0).nonzero()[:, 0]
    scale = max(size) / 90
    assert across[0] * scale + left == pytest.approx(0, abs=2 * scale)
    assert (across[-1] + 1) * scale + left == pytest.approx(size[0], abs=2 * scale)


@pytest.mark.parametrize("size", [(96, 96), (300, 150), (90, 270), (640, 480)])
def test_the_picture_box_is_what_the_processor_shows_the_model(size):
    width, height = size
    assert Llava.shown(SQUEEZING, size) == (0, 0, width, height)
    left, top, right, bottom = Llava.shown(CROPPING, size)
    assert (right - left, bottom - top) == pytest.approx((min(size), min(size)), abs=1e-6)
    # A ramp of brightness tells which columns and rows the processor shows.
    for horizontal in (True, False):
        ramp = torch.linspace(0, 255, width if horizontal else height).round().byte()
        image = ramp.expand(height, width) if horizontal else ramp[:, None].expand(height, width)
        shown = CROPPING(
            Image.fromarray(image.contiguous().numpy()).convert("RGB"), do_normalize=False, return_tensors="pt"
        )["pixel_values"][0, 0]
        seen = shown[0] if horizontal else shown[:, 0]
        start, end = (left, right) if horizontal else (top, bottom)
        length = width if horizontal else height
        assert seen[0] * length == pytest.approx(start, abs=0.02 * length)
        assert seen[-1] * length == pytest.approx(end, abs=0.02 * length)
