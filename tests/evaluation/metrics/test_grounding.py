"""Boxes as the paper's harness takes them."""

import pytest

from feathervlm.evaluation.metrics import grounding


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[0.12, 0.34, 0.56, 0.78]", (0.12, 0.34, 0.56, 0.78)),
        ("[0, 0, 1, 1]", (0, 0, 1, 1)),
        ("[0.1, 0.2, 0.3, 0.4].", None),
        ("The box is [0.1, 0.2, 0.3, 0.4]", None),
        ("(0.1, 0.2, 0.3, 0.4)", None),
        ("[0.3, 0.2, 0.1, 0.4]", None),
        ("[0.1, 0.4, 0.3, 0.4]", None),
        ("[0.1, 0.2, 0.3, 1.01]", None),
        ("[-0.1, 0.2, 0.3, 0.4]", None),
        ("[0.1, 0.2, 0.3]", None),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", None),
        ("['0.1', 0.2, 0.3, 0.4]", None),
        ("[[0.1, 0.2, 0.3, 0.4]]", None),
        ("[0.1, 0.2, 0.3, 0.", None),
        ("[0.1, 0.2, 0.3, nan]", None),
        ("[0.1, 0.2, 0.3, 1e999]", None),
        ("", None),
        ("left", None),
        ("\0", None),
        ("[" * 500, None),
    ],
)
def test_only_a_list_of_four_fractions_in_order_is_a_box(answer, expected):
    assert grounding.literal_box(answer) == expected


def test_the_true_box_is_rounded_to_two_decimals():
    assert grounding.rounded((10, 20, 60, 50), (640, 480)) == (0.02, 0.04, 0.09, 0.1)


def test_a_true_box_that_rounding_empties_is_never_met():
    empty = grounding.rounded((100, 100, 101, 101), (640, 480))
    assert empty[0] == empty[2]
    assert grounding.overlap((0.1, 0.1, 0.3, 0.3), empty) == 0


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0.0, 0.0, 0.5, 0.5), 1.0),
        ((0.0, 0.0, 1.0, 0.5), 0.5),
        ((0.0, 0.0, 1.0, 1.0), 0.25),
        ((0.5, 0.0, 1.0, 0.5), 0.0),
        ((0.25, 0.25, 0.75, 0.75), 1 / 7),
    ],
)
def test_overlap_by_hand(other, expected):
    assert grounding.overlap((0.0, 0.0, 0.5, 0.5), other) == pytest.approx(expected)


def test_the_question():
    assert grounding.ask("the red car") == (
        'Please provide the bounding box coordinate of the region this sentence describes: "the red car"'
    )
