"""Numbers from records, by hand and against slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feathervlm.diagnosis import mask_statistics
from feathervlm.evaluation import samples
from feathervlm.evaluation.samples import Sample
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.study.aggregates import StudyResults, target_cells

SHARES = st.floats(0, 1)


@given(st.integers(1, 12), st.integers(1, 12), st.tuples(SHARES, SHARES, SHARES, SHARES))
def test_target_cells_are_those_whose_middle_is_inside_or_the_one_around_the_middle(rows, cols, corners):
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    found = target_cells((left, top, right, bottom), (1, rows, cols))
    slow = [
        (row, col)
        for row in range(rows)
        for col in range(cols)
        if top <= (row + 0.5) / rows < bottom and left <= (col + 0.5) / cols < right
    ]
    middle = (min(int((top + bottom) / 2 * rows), rows - 1), min(int((left + right) / 2 * cols), cols - 1))
    assert list(zip(*found[0].nonzero(), strict=True)) == (slow or [middle])


def record(number, right, mask=None, box=None, top=None):
    facts = {}
    if mask is not None:
        facts = {"tokens": 2.0, "flops": 0.5, "shape": (1, 2, 2), "kept": (samples.pack(np.array(mask)),)}
    target = box and tuple(box)
    iou = 1.0 if box else None
    return Sample(number, "", "", "", float(right), iou=iou, top=top, target=target if mask else None, **facts)


@pytest.fixture
def results():
    """Two tasks: two boxes, one in the top left cell and one in the bottom right, and two other questions."""
    boxes = [(0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), None, None]
    tops = [True, False, None, None]
    bottom = [[[False, False], [True, True]]]
    runs = {
        UNPRUNED: [True, True, True, False],
        "low": [False, True, True, True],
    }
    records = {
        method: {
            number: record(number, right, None if method == UNPRUNED else bottom, boxes[number], tops[number])
            for number, right in enumerate(rights)
        }
        for method, rights in runs.items()
    }
    return StudyResults(
        {"boxes": "localization", "words": "other"}, ["boxes"] * 2 + ["words"] * 2, records, lambda number: None
    )


def test_accuracy_by_kind_and_half(results):
    assert results.mean("low", "localization").value == 0.5
    assert results.relative("low", "localization").value == 0.5
    assert results.relative("low", "other").value == 2
    assert results.half("low", True).value == 0
    assert results.half("low", False).value == 1
    assert results.half(UNPRUNED, True).value == 1


def test_what_was_kept_and_what_it_cost(results):
    assert results.of_masks("low", mask_statistics.mean_row).value == 0.75
    assert results.recall("low").value == 0.5, "one target is left whole, one is gone"
    assert results.cost("low") == (2.0, 0.5)
    assert np.isnan(results.cost(UNPRUNED)).all()
    assert len(results.masks("low")) == 4


def test_a_number_of_the_heat_map(results):
    assert results.of_heat("low", lambda heat: float(heat[1].mean()), (2, 2)).to_dict() == {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
    }
    row = results.row("low")
    assert row["average_tokens"] == 2
    assert row["localization_change"]["value"] == -0.5
    assert row["bottom_third"][0]["value"] == pytest.approx(2 / 3, abs=1e-3)
