"""Boxes as one notation, and choices from free text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.core.boxes import iou
from feathervlm.evaluation.metrics.grounding import literal_box
from feathervlm.integrations.lmms_eval.scoring import chosen, is_hit, write_fractions

EDGES = st.tuples(st.floats(0, 0.99), st.floats(0.01, 1)).map(lambda pair: (pair[0] * pair[1], pair[1]))


@given(EDGES, EDGES, st.integers(1, 4000), st.integers(1, 4000))
def test_written_boxes_are_read_again(horizontal, vertical, width, height):
    (left, right), (top, bottom) = horizontal, vertical
    box = left * width, top * height, right * width, bottom * height
    found = literal_box(write_fractions(box, (width, height)))
    if right - left > 1e-9 and bottom - top > 1e-9:
        assert found == pytest.approx((left, top, right, bottom), abs=2e-6)


def test_the_threshold_is_reached_at_once():
    """A quarter of the true box and nothing else: IoU 0.25 exactly."""
    assert iou((0, 0, 0.5, 0.5), (0, 0, 1, 1)) == 0.25
    assert is_hit("[0, 0, 0.5, 0.5]", (0, 0, 1, 1), 0.25)
    assert not is_hit("[0, 0, 0.5, 0.49]", (0, 0, 1, 1), 0.25)


@pytest.mark.parametrize(
    ("answer", "found"), [("A", "A"), (" b ", "B"), ("C.", "C"), ("A. 3", "A"), ("E", None), ("AB", None), ("", None)]
)
def test_a_choice_is_read(answer, found):
    assert chosen(answer, "ABCD") == found
