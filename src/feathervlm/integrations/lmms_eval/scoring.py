"""Scoring functions for lmms-eval beside `feathervlm.evaluation.metrics`: one notation of boxes, choices in texts."""

from collections.abc import Sequence
from math import ceil, floor

from feathervlm.core.boxes import Size, iou
from feathervlm.core.layout import Box
from feathervlm.evaluation.metrics.grounding import literal_box


def write_fractions(box: Box, size: Size) -> str:
    """Return a box in pixels as `literal_box` reads it, rounded outwards to millionths.

    >>> write_fractions((64.0, 48.0, 320.0, 480.0), (640, 480))
    '[0.1, 0.1, 0.5, 1.0]'
    """
    low = [floor(1e6 * value / side) / 1e6 for value, side in zip(box[:2], size, strict=True)]
    high = [ceil(1e6 * value / side) / 1e6 for value, side in zip(box[2:], size, strict=True)]
    return str(low + high)


def is_hit(answer: str, box: Sequence[float], threshold: float) -> bool:
    """Whether the box of an answer overlaps the true one, both in fractions, with at least that IoU."""
    read = literal_box(answer)
    return read is not None and iou(read, box) >= threshold


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """Return the choice that an answer is, in any case; text after a full stop is ignored.

    >>> chosen("True", ("True", "False")), chosen("b. 1", "ABC"), chosen("Both", "ABC")
    ('True', 'B', None)
    """
    head = answer.strip().partition(".")[0].strip().casefold()
    return next((choice for choice in choices if choice.casefold() == head), None)
