"""What is right: questions with their answers, boxes as text, and how an answer is graded.

A box is written as four coordinate tokens, `<loc00>` to `<loc31>`, for left, top, right and bottom in bins of four
pixels. Knows nothing of what is asked, or of scenes but their width.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from feathervlm.embedded.scenes import SIDE

BINS = 32
BIN = SIDE // BINS
LOCATIONS = [f"<loc{value:02d}>" for value in range(BINS)]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        task: the name of its task.
        text: what is asked.
        answer: the right answer: a word, a number, or four coordinate tokens.
        box: for localization: (left, top, right, bottom) of the target in pixels.
        kind: what the wording alone tells about the answer: which attribute is asked, which place or relation named.
    """

    task: str
    text: str
    answer: str
    box: tuple[int, int, int, int] | None = None
    kind: str = ""


@dataclass(frozen=True)
class Grade:
    """How an answer did: right or wrong and, for localization, the IoU with the true box (0 for an invalid box)."""

    correct: bool
    iou: float | None = None


def grade(question: Question, answer: str) -> Grade:
    """Compare an answer with the right one; a box counts from IoU 0.5 on, an invalid one never."""
    if question.box is None:
        return Grade(answer.strip() == question.answer)
    box = read_box(answer)
    overlap = iou(box, question.box) if box else 0.0
    return Grade(overlap >= 0.5, overlap)


def write_box(box: Sequence[float]) -> str:
    """The four coordinate tokens of a box in pixels, right and bottom exclusive."""
    left, top, right, bottom = box
    bins = [int(value) // BIN for value in (left, top, right - 1, bottom - 1)]
    return "".join(LOCATIONS[min(max(value, 0), BINS - 1)] for value in bins)


def read_box(answer: str) -> Box | None:
    """The box that an answer names, in pixels, or None unless it is exactly four coordinate tokens in order."""
    if not re.fullmatch(r"\s*(<loc\d\d>\s*){4}", answer):
        return None
    left, top, right, bottom = (int(value) for value in re.findall(r"<loc(\d\d)>", answer))
    if max(left, top, right, bottom) >= BINS or right < left or bottom < top:
        return None
    # The middle of the pixels that fall into a bin: starts 4b..4b+3, exclusive ends 4b+1..4b+4.
    return BIN * left + 1.5, BIN * top + 1.5, BIN * right + 2.5, BIN * bottom + 2.5


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)
