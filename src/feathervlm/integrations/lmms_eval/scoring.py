"""What lmms-eval's answers need beside `feathervlm.evaluation.metrics`: boxes as one notation, choices from free text.

Pure functions of text and numbers; they know neither lmms-eval nor a model.
"""

from collections.abc import Sequence
from math import ceil, floor

from feathervlm.core.boxes import Size
from feathervlm.core.layout import Box
from feathervlm.evaluation.metrics.grounding import literal_box, overlap


def write_fractions(box: Box, size: Size) -> str:
    """A box in pixels as `literal_box` reads it, rounded outwards to millionths.

    >>> write_fractions((64.0, 48.0, 320.0, 480.0), (640, 480))
    '[0.1, 0.1, 0.5, 1.0]'
    """
    low = [floor(1e6 * value / side) / 1e6 for value, side in zip(box[:2], size, strict=True)]
    high = [ceil(1e6 * value / side) / 1e6 for value, side in zip(box[2:], size, strict=True)]
    return str(low + high)


def is_hit(answer: str, box: Sequence[float], threshold: float) -> bool:
    """Whether an answer's box overlaps the true one, both in fractions, with at least that IoU."""
    found = literal_box(answer)
    return found is not None and overlap(found, box) >= threshold


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer is: itself, in any case, with nothing behind it but what follows a full stop.

    >>> chosen("True", ("True", "False")), chosen("b. 1", "ABC"), chosen("Both", "ABC")
    ('True', 'B', None)
    """
    head = answer.strip().partition(".")[0].strip().casefold()
    return next((choice for choice in choices if choice.casefold() == head), None)
