"""What is right: questions with their answers, boxes as text, and how an answer is graded.

A box is written as four coordinate tokens, `<loc00>` to `<loc31>`, for left, top, right and bottom in bins of four
pixels. Knows nothing of what is asked, or of scenes but their width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from feathervlm.core.boxes import BoxFormat, iou
from feathervlm.core.layout import Box
from feathervlm.embedded.scenes import SIDE

BINS = 32
BIN = SIDE // BINS
LOCATIONS = [f"<loc{value:02d}>" for value in range(BINS)]
BOXES = BoxFormat(
    name="bins of four pixels, location tokens",
    prompt="where is the {object} ?",
    notations=("<loc{}><loc{}><loc{}><loc{}>", "<loc{}> <loc{}> <loc{}> <loc{}>"),
    scale=BINS,
    cells=True,
    digits=2,
    whole=True,
)
"""The tokens name the bins of a box's first and last pixels."""


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
    return BOXES.write(box, (SIDE, SIDE))


def read_box(answer: str) -> Box | None:
    """The box that an answer names, in pixels, or None unless it is exactly four coordinate tokens in order."""
    return BOXES.read(answer, (SIDE, SIDE))
