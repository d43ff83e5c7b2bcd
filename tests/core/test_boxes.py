import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.core.boxes import BRACKETS, FRACTIONS_OF_SQUARE, PAIRS, THOUSANDTHS_JSON, BoxFormat, iou
from feathervlm.core.errors import PruningError
from feathervlm.embedded.questions import BOXES as EMBEDDED
from feathervlm.engine.family import Family
from feathervlm.families import FAMILIES

DECLARED = {family.boxes for family in FAMILIES.values() if family.boxes is not None}
QWEN2, QWEN25, GLM = (FAMILIES[kind].boxes for kind in ("qwen2_vl", "qwen2_5_vl", "glm4v"))
INTERN, PALIGEMMA, PERCEPTION = (FAMILIES[kind].boxes for kind in ("internvl", "paligemma", "perception_lm"))
PERCENT = BoxFormat("percent", "{object}?", ("{} {} {} {}",), 100, corners="xywh", decimals=1)
PIXELS = BoxFormat("pixels", "{object}?", (PAIRS,), None, corners="xywh")
EDGES = [*sorted(DECLARED, key=lambda form: form.name), PERCENT, PIXELS]  # all but the one whose numbers are cells
BAD = {"name": "bad", "prompt": "where is {object}?", "notations": (BRACKETS,), "scale": 1000}


@st.composite
def pictures(draw):
    size = draw(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
    shown = draw(st.tuples(st.integers(28, 2000), st.integers(28, 2000)))
    ends = [
        sorted(draw(st.lists(st.floats(0, side), min_size=2, max_size=2, unique=True).filter(lambda e: e[0] != e[1])))
        for side in size
    ]
    return size, shown, (ends[0][0], ends[1][0], ends[0][1], ends[1][1])


def unit(form, size, shown):
    """What one step of the last digit is in pixels, across and down."""
    sides = (max(size), max(size)) if form.square else size
    limits = shown if form.scale is None else (form.scale, form.scale)
    return [side / limit / 10**form.decimals for side, limit in zip(sides, limits, strict=True)]


@given(st.sampled_from(EDGES), pictures())
def test_what_is_written_reads_back_within_the_resolution(form, drawn):
    size, shown, box = drawn
    back = form.read(form.write(box, size, shown), size, shown)
    if back is None:  # a box at the very edge of a picture in wide padding can end up in the padding
        assert form.square
        assert min(box[2] - box[0], box[3] - box[1]) < max(unit(form, size, shown))
        return
    # Three digits cannot say 1000.
    steps = 2 if form.digits and form.scale == 10**form.digits else 1
    for axis, step in enumerate(unit(form, size, shown)):
        assert abs(back[axis] - box[axis]) <= steps * step + 1e-6
        assert abs(back[axis + 2] - box[axis + 2]) <= steps * step + 1e-6
        assert 0 <= back[axis] < back[axis + 2] <= size[axis]


@given(st.sampled_from(EDGES), pictures())
def test_what_was_read_is_written_and_read_the_same(form, drawn):
    size, shown, box = drawn
    once = form.read(form.write(box, size, shown), size, shown)
    if once is not None:
        again = form.read(form.write(once, size, shown), size, shown)
        # A box that is cut off at the picture's edge may be one step narrower.
        assert again == pytest.approx(once, abs=1e-6) or form.square


@given(st.integers(1, 32), st.integers(1, 12), st.data())
def test_cells_are_those_of_the_first_and_last_pixel(scale, wide, data):
    form = BoxFormat("cells", "{object}?", (BRACKETS,), scale, cells=True)
    side = scale * wide
    ends = [sorted(data.draw(st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True))) for _ in "xy"]
    (left, right), (top, bottom) = ends
    box = left, top, right, bottom
    text = form.write(box, (side, side))
    assert [int(n) for n in re.findall(r"\d+", text)] == [
        left // wide, top // wide, (right - 1) // wide, (bottom - 1) // wide,
    ]  # fmt: skip
    back = form.read(text, (side, side))
    assert max(abs(one - other) for one, other in zip(back, box, strict=True)) <= (wide - 1) / 2
    assert form.write(back, (side, side)) == text


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_asks_for_what_is_described(kind):
    form = FAMILIES[kind].boxes
    if form is not None:
        question = form.ask('the {red} "car"')
        assert 'the {red} "car"' in question
        assert "{object}" not in question
        assert form.name


def test_a_format_is_not_inherited():
    class Borrower(FAMILIES["qwen2_vl"]):
        pass

    assert Borrower.boxes is None
    assert Family.boxes is None


def test_families_without_a_documented_convention_have_none():
    undocumented = {
        "llava_next", "llava_onevision", "video_llama_3", "mistral3", "gemma3", "aya_vision", "cohere2_vision",
        "idefics3", "smolvlm", "llama4", "ovis2", "fast_vlm",
    }  # fmt: skip
    assert {kind for kind in undocumented if FAMILIES[kind].boxes is not None} == set()


@pytest.mark.parametrize(
    ("form", "size", "shown", "text"),
    [
        (FRACTIONS_OF_SQUARE, (400, 200), None, "[0.25, 0.50, 0.75, 0.75]"),
        (THOUSANDTHS_JSON, (400, 200), None, '{"bbox_2d": [250, 500, 750, 1000]}'),
        (QWEN2, (400, 200), None, "<|box_start|>(250,500),(750,1000)<|box_end|>"),
        (QWEN25, (400, 200), (420, 196), '{"bbox_2d": [105, 98, 315, 196]}'),
        (INTERN, (400, 200), None, "<box>[[250, 500, 750, 1000]]</box>"),
        (GLM, (400, 200), None, "<|begin_of_box|>[[250, 500, 750, 1000]]<|end_of_box|>"),
        (PALIGEMMA, (400, 200), None, "<loc0512><loc0256><loc1023><loc0767>"),
        (PERCEPTION, (400, 200), None, "[250,500,750,999]"),
        (PERCENT, (400, 200), None, "25.0 50.0 50.0 50.0"),
        (EMBEDDED, (400, 200), None, "<loc08><loc16><loc23><loc31>"),
    ],
)
def test_a_box_in_every_notation(form, size, shown, text):
    assert form.write((100, 100, 300, 200), size, shown) == text


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        (FRACTIONS_OF_SQUARE, "[0.25, 0.5, 0.75, 0.625]"),
        (FRACTIONS_OF_SQUARE, "The car is at [ 0.25,0.5,.75 , 6.25e-1]."),
        (THOUSANDTHS_JSON, '```json\n[\n\t{"bbox_2d": [250, 500, 750, 750], "label": "the red car"}\n]\n```'),
        (THOUSANDTHS_JSON, '[{"label": "car", "bbox_2d": [\n  250,\n  500,\n  750,\n  750\n]}]'),
        (THOUSANDTHS_JSON, '{"bbox_2d": [250.0, 500.0, 750.0, 750.0]}'),
        (THOUSANDTHS_JSON, '[{"bbox_2d": [250, 500, 750, 750], "label": "car"}, {"bbox_2d": [7, 8'),
        (THOUSANDTHS_JSON, '[{"bbox_2d": [250, 500, 750, 750]}, {"bbox_2d": [1, 2, 3, 4]}]'),
        (THOUSANDTHS_JSON, "<think>Perhaps [1, 2, 3, 4]?</think>\n[250, 500, 750, 750]"),
        (THOUSANDTHS_JSON, "Perhaps [1, 2, 3, 4]?</think>\n[250, 500, 750, 750]"),
        (QWEN2, "<|object_ref_start|>car<|object_ref_end|><|box_start|>(250,500),(750,750)<|box_end|><|im_end|>"),
        (QWEN2, "car(250, 500), (750, 750)"),
        (QWEN25, '```json\n[{"bbox_2d": [105, 98, 315, 147], "label": "car"}]```'),
        (INTERN, "<ref>the red car</ref><box>[[250, 500, 750, 750]]</box>"),
        (INTERN, "<ref>cars</ref><box>[[250, 500, 750, 750], [1, 2, 3, 4]]</box>"),
        (GLM, "<think>[[1, 2, 3, 4]]</think><answer>It is <|begin_of_box|>[[250,500,750,750]]<|end_of_box|></answer>"),
        (GLM, "at (250, 500, 750, 750)"),
        (GLM, "at <250, 500, 750, 750>"),
        (PERCEPTION, "[250,500,750,750]"),
        (PERCEPTION, "[250, 500, 750, 750] and [001, 002, 003, 004]"),
    ],
)
def test_realistic_answers(form, answer):
    size, shown = (400, 200), (420, 196)
    assert form.read(answer, size, shown) == pytest.approx((100, 100, 300, 150))


def test_location_tokens_name_the_far_edge_last():
    found = PALIGEMMA.read(
        "<loc0000><loc0341><loc1023><loc0682> cat ; <loc0001><loc0002><loc0003><loc0004> dog", (301, 77)
    )
    assert found == pytest.approx((301 * 341 / 1023, 0, 301 * 682 / 1023, 77))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "There is no car.",
        "[250, 500, 750]",
        "[250, 500, 750, 750, 800]",
        "[250, 500, 750, 7",
        "[750, 500, 250, 750]",
        "[250, 750, 750, 500]",
        "[250, 500, 250, 750]",
        "[-20, 500, 750, 750]",
        "[250, 500, 750, 1002]",
        "[250, 500, 1333, 750]",
        "[nan, 500, 750, 750]",
        "[250, 500, 750, NaN]",
        "[250, 500, inf, 750]",
        "[250, 500, Infinity, 750]",
        '["250", "500", "750", "750"]',
        "[750, 500, 250, 750], or rather [250, 500, 750, 750]",
        "<think>[250, 500, 750, 750]",
        "[1000, 0, 1001, 10]",
    ],
)
def test_an_invalid_box_is_none(answer):
    assert THOUSANDTHS_JSON.read(answer, (640, 481)) is None


@pytest.mark.parametrize("answer", ["[-1, -1, 1001, 1001]", "[0, 0, 1000, 1000]"])
def test_one_unit_outside_is_rounding_and_is_cut_off(answer):
    assert THOUSANDTHS_JSON.read(answer, (641, 477)) == (0, 0, 641, 477)


@pytest.mark.parametrize("answer", ["[0.1, 0.2, 1.01, 0.9]", "[-.01, 0.2, 1.0, 0.9]"])
def test_the_unit_is_that_of_the_last_digit(answer):
    assert FRACTIONS_OF_SQUARE.read(answer, (100, 100)) is not None
    assert FRACTIONS_OF_SQUARE.read("[0.1, 0.2, 1.02, 0.9]", (100, 100)) is None
    assert FRACTIONS_OF_SQUARE.read("[10, 20, 90, 90]", (100, 100)) is None


@pytest.mark.parametrize("answer", ["[250,500,1000,750]", "[0.250, 0.500, 0.750, 0.750]", "[25, 50, 75, 75]"])
def test_digits_are_counted_where_they_carry_the_point(answer):
    assert PERCEPTION.read(answer, (100, 100)) is None


def test_every_box_is_read_in_order():
    found = THOUSANDTHS_JSON.read_all("[0, 0, 10, 10] [9, 9, 1, 1] [0, 0, 100, 1000]", (1000, 500))
    assert found == [(0, 0, 10, 5), None, (0, 0, 100, 500)]
    assert THOUSANDTHS_JSON.read_all("none", (1000, 500)) == []


def test_the_padded_square_and_its_padding():
    assert FRACTIONS_OF_SQUARE.read("[0.00, 0.25, 0.50, 0.50]", (200, 100)) == (0, 0, 100, 50)
    assert FRACTIONS_OF_SQUARE.read("[0.25, 0.00, 0.50, 0.50]", (100, 200)) == (0, 0, 50, 100)
    assert FRACTIONS_OF_SQUARE.read("[0.00, 0.00, 1.00, 1.00]", (101, 200)) == (0, 0, 101, 200)
    assert FRACTIONS_OF_SQUARE.read("[0.00, 0.00, 1.00, 0.25]", (200, 100)) is None


def test_a_part_that_the_model_saw_is_the_frame():
    centre = (50.0, 0.0, 150.0, 100.0)
    assert FRACTIONS_OF_SQUARE.read("[0.00, 0.50, 0.50, 1.00]", (200, 100), part=centre) == (50, 50, 100, 100)
    assert FRACTIONS_OF_SQUARE.write((50, 50, 100, 100), (200, 100), part=centre) == "[0.00, 0.50, 0.50, 1.00]"
    assert QWEN25.read("[0, 0, 14, 28]", (200, 100), (28, 28), centre) == (50, 0, 100, 100)
    with pytest.raises(PruningError, match="shown"):
        FRACTIONS_OF_SQUARE.write((0, 0, 50, 100), (200, 100), part=centre)


def test_pixels_are_those_of_the_resized_picture():
    assert QWEN25.read("[14, 14, 28, 56]", (50, 100), (28, 56)) == (25, 25, 50, 100)
    assert QWEN25.read("[14, 14, 30, 56]", (50, 100), (28, 56)) is None


@given(st.floats(0, 0.98), st.floats(1e-9, 1e-3))
def test_a_tiny_box_is_not_written_empty(start, length):
    text = THOUSANDTHS_JSON.write((start * 500, 3, (start + length) * 500, 5), (500, 400))
    left, _, right, _ = map(int, re.findall(r"\d+", text.removeprefix('{"bbox_2d')[2:]))
    assert left < right


def test_the_embedded_model_has_a_format():
    assert EMBEDDED.ask("red circle") == "where is the red circle ?"
    assert EMBEDDED.read(" <loc01> <loc02><loc03>\n<loc04> ", (128, 128)) == (5.5, 9.5, 14.5, 18.5)
    assert EMBEDDED.read("it is <loc01><loc02><loc03><loc04>", (128, 128)) is None


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"prompt": "where is it?"}, "where is it"),
        ({"notations": ()}, "()"),
        ({"notations": (BRACKETS, "[{}]")}, "[{}]"),
        ({"corners": "xyhw"}, "xyhw"),
        ({"scale": 0}, "scale=0"),
        ({"cells": True, "scale": None}, "None"),
        ({"cells": True, "decimals": 2}, "2"),
    ],
)
def test_a_format_that_makes_no_sense_is_refused(wrong, names):
    with pytest.raises(PruningError, match=re.escape(names)):
        BoxFormat(**(BAD | wrong))


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 9), (9, 5, 5, 9), (5, 9, 9, 5), (math.nan, 1, 2, 3), (-9, 0, -1, 5), (100, 0, 120, 9), (0, 60, 9, 70)],
)
def test_no_box_cannot_be_written(box):
    with pytest.raises(PruningError, match="100x50"):
        THOUSANDTHS_JSON.write(box, (100, 50))


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_a_size_has_to_be_positive(size):
    with pytest.raises(PruningError, match=re.escape(str(size))):
        THOUSANDTHS_JSON.read("", size)


@pytest.mark.parametrize("shown", [None, (0, 28)])
def test_pixels_of_the_resized_picture_need_its_size(shown):
    with pytest.raises(PruningError, match="shown="):
        QWEN25.read("", (100, 100), shown)


def test_iou():
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
