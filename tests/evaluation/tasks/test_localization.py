"""Boxes in answers, read as each family writes them and as its processor shows the picture."""

import pytest

from feathervlm import PruningError
from feathervlm.core.boxes import iou
from feathervlm.families import FAMILIES
from feathervlm.families.box_reader import BoxReader
from feathervlm.inference.loading import check
from feathervlm.inference.model_spec import ModelSpec
from feathervlm.inference.prompts import Prompt, prepare

SIZE = (101, 67)
CROP = {"do_center_crop": True, "size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


@pytest.fixture
def reader(tiny_family):
    def make(name):
        return BoxReader.of(check(ModelSpec(tiny_family(name))))

    return make


def test_pixels_of_the_resized_picture(reader, lines):
    boxes = reader("qwen2_5_vl")
    _, picture = lines({"image": "a.png", "prompt": "word7", "box": [10, 20, 60, 50]}).item(0)
    _, rows, cols = prepare(boxes.processor, [Prompt("word7", (picture,))])["image_grid_thw"][0].tolist()
    shown = cols * 4, rows * 4
    assert boxes.resized(SIZE) == shown != SIZE
    true = (10, 20, 60, 50)
    left, top, right, bottom = (round(side * to / of) for side, to, of in zip(true, shown * 2, SIZE * 2, strict=True))
    found = boxes.read(f'[{{"bbox_2d": [{left}, {top}, {right}, {bottom}], "label": "x"}}]', SIZE)
    assert iou(found, true) > 0.95
    outside = boxes.read(f"[{left}, {top}, {shown[0] + 5}, {bottom}]", SIZE)
    assert outside is None, "the picture ends before"


@pytest.mark.parametrize(
    ("settings", "shown"),
    [({}, (0, 0, 101, 67)), (CROP, (17, 0, 84, 67)), ({"do_pad": True}, (0, -17, 101, 84))],
    ids=["squeezed", "cropped", "padded"],
)
def test_fractions_are_of_what_the_processor_shows(settings, shown, reader):
    """LLaVA's are of a padded square, unless the processor squeezes the picture or cuts its centre out."""
    boxes, true = reader("llava"), (27, 20, 60, 50)
    for name, value in settings.items():
        setattr(boxes.processor.image_processor, name, value)
    left, top, right, bottom = shown
    wide, high = right - left, bottom - top
    a, b, c, d = true
    answer = f"[{(a - left) / wide:.2f}, {(b - top) / high:.2f}, {(c - left) / wide:.2f}, {(d - top) / high:.2f}]"
    assert iou(boxes.read(answer, SIZE), true) > 0.93
    assert boxes.read("no box", SIZE) is None


def test_a_resized_picture_of_unknown_size(reader):
    llava = reader("llava")
    boxes = BoxReader(llava.family, llava.processor, FAMILIES["qwen2_5_vl"].boxes)
    with pytest.raises(PruningError, match="does not tell how it resizes pictures"):
        boxes.read("[1, 2, 3, 4]", SIZE)


def test_an_unknown_format(reader):
    boxes = reader("gemma3")
    assert boxes.format is None
    with pytest.raises(PruningError, match=r"not known how Gemma 3 writes boxes, so the answer '\[1, 2, 3, 4\]'"):
        boxes.read("[1, 2, 3, 4]", SIZE)
