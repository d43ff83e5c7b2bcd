"""Boxes of the scenes as text, and how an answer is graded.

A box is written as four coordinate tokens, `<loc00>` to `<loc63>`, for left, top, right and bottom in bins of three
pixels.
"""

from collections.abc import Sequence

from feathervlm.core.boxes import BoxFormat, iou
from feathervlm.core.layout import Box
from feathervlm.embedded.questions import SceneQuestion
from training.world.scenes import SIDE

BINS = 64
BIN = SIDE // BINS
LOCATIONS = [f"<loc{value:02d}>" for value in range(BINS)]
BOXES = BoxFormat(
    name="bins of three pixels, location tokens",
    prompt="where is the {object} ?",
    notations=("<loc{}><loc{}><loc{}><loc{}>", "<loc{}> <loc{}> <loc{}> <loc{}>"),
    scale=BINS,
    cells=True,
    digits=2,
    whole=True,
)
"""The tokens name the bins of the first and last pixels of a box."""


def grade(question: SceneQuestion, answer: str) -> tuple[bool, float | None]:
    """Return whether an answer is right and, for localization, its IoU with the true box.

    A box is right from an IoU of 0.5 on. An invalid box has an IoU of 0.
    """
    if question.box is None:
        return answer.strip() == question.answer, None
    box = read_box(answer)
    overlap = iou(box, question.box) if box else 0.0
    return overlap >= 0.5, overlap


def write_box(box: Sequence[float]) -> str:
    """Return the four coordinate tokens of a box in pixels, right and bottom exclusive."""
    return BOXES.write(box, (SIDE, SIDE))


def read_box(answer: str) -> Box | None:
    """Return the box that an answer names, in pixels; None unless it is exactly four coordinate tokens in order."""
    return BOXES.read(answer, (SIDE, SIDE))
