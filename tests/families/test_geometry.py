"""Geometry, proven with real processors: a change of one cell of the picture changes the token that the layout puts
there more than any other, and the overlay paints that cell."""

import copy
import warnings
from functools import cache

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

import feathervlm
from families.processors import PROCESSORS, square
from family_cases import FAMILY_CASES
from feathervlm import PlacementWarning, Schedule, Stage, Unprunable, methods
from feathervlm.core import Given
from feathervlm.core.layout import tokens_of
from feathervlm.engine.decoder import DecoderView
from method_cases import in_gate

SIZES = {"portrait": (61, 103), "landscape": (150, 70), "tiny": (23, 31), "huge": (640, 410), "square": (96, 96)}
EDGE = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
PLACING = {
    "llava-cropping": lambda: square.llava(tf.CLIPImageProcessorPil(**EDGE)),
    "llava-closer": lambda: square.llava(tf.CLIPImageProcessorPil(**{**EDGE, "size": {"shortest_edge": 60}})),
    "llava-padding": lambda: square.llava(tf.LlavaImageProcessorPil(**EDGE, do_pad=True)),
    "fast_vlm-padding": lambda: square.llava(tf.LlavaImageProcessorPil(**EDGE, do_pad=True)),
    "deepseek_vl-padding": lambda: square.Padding("deepseek_vl", square.padded_picture),
}
"""Processors that show the model a part of a picture, or more than the picture."""
CAPTION = 24
EQUAL = {"perception_lm"}
"""Families whose pictures all have as many tiles."""
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of NumPy's


@cache
def model(name):
    """The case with weights so small that features stay near their patch."""
    vlm = copy.deepcopy(FAMILY_CASES[name.partition("-")[0]].model())
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in vlm.parameters():
            if weight.dim() >= 2:
                weight.normal_(std=0.02)
    return vlm


@cache
def processor(name):
    return (PROCESSORS | PLACING)[name]()


def picture(size, seed=0):
    """Smooth colours, none of which is that of padding."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(60, 200, (5, 5, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def inputs(name, *pictures):
    words = processor(name)
    marks = " word9 ".join([words.image_token] * len(pictures))
    text = f"word7 {marks} word8 word9"
    found = words(images=list(pictures), text=text, return_tensors="pt")
    return {key: value for key, value in found.items() if key not in ("num_crops", "image_rows", "image_cols")}


def look(name, *pictures, method="uniform:layer=0,stride=1"):
    """The report, and the embeddings of all visual tokens as they enter the decoder."""
    vlm, seen = model(name), []

    def keep(module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = DecoderView(vlm).layers[0].register_forward_pre_hook(keep, with_kwargs=True, prepend=True)
    try:
        with torch.no_grad(), feathervlm.prune(vlm, method) as pruning:
            vlm(**inputs(name, *pictures))
    finally:
        handle.remove()
    report = pruning.report
    return report, seen[0][0][report.record.layout.mask[0]]


class Seen(Exception):  # noqa: N818 - it ends a forward whose layers are of no interest
    """Holds the embeddings of all tokens."""


def embeddings(name, report, *pictures):
    """The embeddings of all visual tokens as they enter the decoder, without running its layers."""

    def end(module, args, kwargs):
        raise Seen(args[0] if args else kwargs["hidden_states"])

    handle = DecoderView(model(name)).layers[0].register_forward_pre_hook(end, with_kwargs=True)
    try:
        with torch.no_grad(), pytest.raises(Seen) as seen:
            model(name)(**inputs(name, *pictures))
    finally:
        handle.remove()
    return seen.value.args[0][0][report.record.layout.mask[0]]


def cells(report, image=0):
    """(x, y) of the middle, as shares of the picture, and the plane of every token of an image."""
    place = report.record.layout.geometry()
    mine = place.image[0] == image
    return torch.stack([place.x[0][mine], place.y[0][mine]], 1), place.plane[0][mine]


def box_of(report, token, image=0):
    """What part of the picture a token shows."""
    plane = report.record.layout.pictures[0][image][int(cells(report, image)[1][token])]
    (x, y), (_, rows, cols) = cells(report, image)[0][token].tolist(), plane.shape
    wide, high = (plane.box[2] - plane.box[0]) / cols, (plane.box[3] - plane.box[1]) / rows
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def inverted(image, box):
    """The picture in other colours inside a box, given in shares of it."""
    changed = np.array(image)
    left, top, right, bottom = box
    rows = slice(max(round(top * image.height), 0), max(round(bottom * image.height), 1))
    cols = slice(max(round(left * image.width), 0), max(round(right * image.width), 1))
    changed[rows, cols] = 255 - changed[rows, cols]
    return Image.fromarray(changed)


def sizes():
    """Every processor with every size; the gate takes one of the first two, neither square, and one of the others."""
    for place, name in enumerate(PROCESSORS):
        for number, size in enumerate(SIZES):
            yield in_gate(number in (place % 2, 2 + place % 3), name, size)


@pytest.mark.parametrize(("name", "size"), list(sizes()))
def test_a_change_in_the_picture_shows_where_the_layout_says(name, size):
    image = picture(SIZES[size])
    report, before = look(name, image)
    planes = report.record.layout.pictures[0][0]
    places, plane = cells(report)
    finest = max(range(len(planes)), key=lambda number: planes[number].size)
    candidates = torch.nonzero(plane == finest)[:, 0]
    generator = torch.Generator().manual_seed(len(candidates))
    for token in candidates[torch.randperm(len(candidates), generator=generator)[:6]].tolist():
        after = embeddings(name, report, inverted(image, box_of(report, token)))
        moved = (after - before).norm(dim=-1)
        for number in range(len(planes)):
            mine = torch.nonzero(plane == number)[:, 0]
            winner = int(mine[moved[mine].argmax()])
            box = box_of(report, winner)
            x, y = places[token].tolist()
            if number == finest:
                assert winner == token, (number, places[winner], places[token])
            else:
                margin = 0.02
                assert box[0] - margin <= x <= box[2] + margin, (number, box, x, y)
                assert box[1] - margin <= y <= box[3] + margin, (number, box, x, y)


WITHOUT_FEATURES = {
    "vipllava": "patch features cannot be read",
    "granite4_vision": "several layers of its encoder",
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_tower_s_features_follow_the_cell(name):
    """Features before the projector are those of the tokens that the layout names."""
    image, method = picture(SIZES["landscape"]), methods.KNN(layer=0, count=10_000)
    if name in WITHOUT_FEATURES:
        with pytest.raises(Unprunable, match=WITHOUT_FEATURES[name]):
            look(name, image, method=method)
        return
    seen = []
    pruning = feathervlm.prune(model(name), method)
    original = pruning.family.vision_features
    pruning.family.vision_features = lambda *arguments: seen.append(original(*arguments)) or seen[-1]
    with pruning, torch.no_grad():
        model(name)(**inputs(name, image))
        report = pruning.report
        places, plane = cells(report)
        finest = max(range(len(report.record.layout.pictures[0][0])), key=lambda n: int((plane == n).sum()))
        candidates = torch.nonzero(plane == finest)[:, 0]
        for token in candidates[:: max(len(candidates) // 4, 1)].tolist():
            model(name)(**inputs(name, inverted(image, box_of(report, token))))
            moved = (seen[-1] - seen[0]).norm(dim=-1)[0]
            assert int(candidates[moved[candidates].argmax()]) == token, places[token]
            assert len(seen[-1][0]) == report.record.layout.counts[0]


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_overlay_paints_the_cell(name):
    image = picture(SIZES["landscape"])
    report, _ = look(name, image)
    planes = report.record.layout.pictures[0][0]
    finest = max(range(len(planes)), key=lambda number: planes[number].size)
    start = sum(plane.size for plane in planes[:finest])
    token = start + planes[finest].size // 3
    only = Schedule(Stage(at=0, select=Given([torch.tensor([token])])))
    drawn = np.asarray(look(name, image, method=only)[0].overlay(image, processor=processor(name), size=300)).astype(
        int
    )
    x, y = cells(report)[0][token].tolist()
    panel = drawn[CAPTION : CAPTION + 140]
    bright = panel.sum(-1) > 200
    rows, cols = np.nonzero(bright)
    assert abs(cols.mean() / 300 - x) < 0.02
    assert abs(rows.mean() / 140 - y) < 0.03


@pytest.mark.parametrize("size", ["landscape", "portrait"])
@pytest.mark.parametrize("name", [*PLACING, "llava", "qwen2_vl", "llava_next", "internvl"])
def test_what_the_overlay_paints_is_what_the_model_sees(name, size):
    """A change of the picture where a kept cell is painted moves the token of that cell more than any other."""
    image, words = picture(SIZES[size]), processor(name)
    report, before = look(name, image)
    planes = report.layout.pictures[0][0]
    finest = max(range(len(planes)), key=lambda number: planes[number].size)
    start = sum(plane.size for plane in planes[:finest])
    x, y = (places - 0.5 for places in cells(report)[0][start : start + planes[finest].size].T)
    middle = [int(order) + start for order in (x**2 + y**2).argsort()[:9:4]]  # no cell of the padding
    for token in middle:
        only = Schedule(Stage(at=0, select=Given([torch.tensor([token])])))
        drawn = look(name, image, method=only)[0].overlay(image, processor=words, size=max(image.size))
        kept = np.asarray(drawn).astype(int)[CAPTION : CAPTION + image.height, : image.width].sum(-1)
        rows, cols = np.nonzero(kept > 0.9 * np.asarray(image).astype(int).sum(-1))
        box = (
            cols.min() / image.width,
            rows.min() / image.height,
            (cols.max() + 1) / image.width,
            (rows.max() + 1) / image.height,
        )
        moved = (look(name, inverted(image, box))[1] - before).norm(dim=-1)[start : start + planes[finest].size]
        assert int(moved.argmax()) + start == token


def test_an_overlay_without_a_processor_warns_where_that_matters():
    wide, square = picture((96, 48)), picture((48, 48))
    report = look("llava-cropping", wide)[0]
    with pytest.warns(PlacementWarning, match=r"96 x 48 pixels.*pass processor=processor"):
        report.overlay(wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.overlay(square)
        report.overlay(wide, box=(24, 0, 72, 48))
        report.overlay(wide, processor=processor("llava-cropping"))
        look("qwen2_vl", wide)[0].overlay(wide)


def test_a_given_layout_is_placed_as_the_family_places_it():
    wide, name = picture((96, 48)), "llava-cropping"
    report = look(name, wide)[0]
    with torch.no_grad(), feathervlm.prune(model(name), "uniform:layer=0,stride=1", layout=report.layout) as pruning:
        model(name)(**inputs(name, wide))
    assert pruning.report.record.crops
    box = pruning.report.record.shown(processor(name), wide.size)
    assert box == (24, 0, 72, 48)


@pytest.mark.parametrize("name", PROCESSORS)
def test_two_pictures_and_their_placeholders(name):
    second = SIZES["landscape" if name in EQUAL else "portrait"]
    one, two = picture(SIZES["landscape"]), picture(second, seed=1)
    report, _ = look(name, one, two)
    layout = report.record.layout
    assert len(layout.pictures[0]) == 2
    assert sum(map(tokens_of, layout.pictures[0])) == int(layout.mask.sum())
