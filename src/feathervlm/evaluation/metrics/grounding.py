"""Boxes as the harness of the paper reads and scores them: a Python list of four fractions of the picture.

The box formats of families are in `core.boxes`. Source: TRI-ML/vlm-evaluation, the harnesses of RefCOCO and OCID-Ref.
"""

from ast import literal_eval
from collections.abc import Sequence

from feathervlm.core.boxes import REGION, Size, iou
from feathervlm.core.layout import Box

overlap = iou
"""The intersection over union of two boxes."""
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
