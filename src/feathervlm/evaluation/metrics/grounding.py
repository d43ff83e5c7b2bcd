"""Boxes as the harness of the paper reads and scores them: a Python list of four fractions of the picture.

The box formats of families are in `core.boxes`. Source: TRI-ML/vlm-evaluation, the harnesses of RefCOCO and OCID-Ref.
"""

from ast import literal_eval
from collections.abc import Sequence

from feathervlm.core.boxes import REGION, Size
from feathervlm.core.layout import Box

PROMPT = REGION + '"{object}"'
"""Prompt of the harness of the paper, with its quotation marks."""


def ask(description: str) -> str:
    """Return the question for the box of what is described."""
    return PROMPT.replace("{object}", description)


def literal_box(answer: str) -> Box | None:
    """Return the box that an answer is, in fractions of the picture; None unless it is a list of four numbers.

    There is no text around the list, all numbers lie in [0, 1], and left < right, top < bottom.

    >>> literal_box("[0.1, 0.2, 0.3, 0.4]")
    (0.1, 0.2, 0.3, 0.4)
    >>> literal_box("[0.1, 0.2, 0.3, 0.4].")
    """
    try:
        value = literal_eval(answer)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(number, int | float) and 0 <= number <= 1 for number in value):
        return None
    left, top, right, bottom = map(float, value)
    return (left, top, right, bottom) if left < right and top < bottom else None


def rounded(box: Sequence[float], size: Size) -> Box:
    """Return a true box in pixels as fractions of the picture with two decimals, as the metric of the paper does.

    A small box may become empty; no answer overlaps it.
    """
    width, height = size
    left, top, right, bottom = (
        round(end / side, 2) for end, side in zip(box, (width, height, width, height), strict=True)
    )
    return left, top, right, bottom


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes, 0 if the other is empty."""
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0.0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)
