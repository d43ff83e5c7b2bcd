"""Questions with their right answers, boxes as text, and how an answer is graded.

A box is written as four coordinate tokens, `<loc00>` to `<loc31>`, for left, top, right and bottom in bins of four
pixels.
"""

from collections import Counter
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
"""The tokens name the bins of the first and last pixels of a box."""


@dataclass(frozen=True)
class SceneQuestion:
    """One question about one scene.

    Attributes:
        task: Name of its task.
        text: Text of the question.
        answer: Right answer: a word, a number, or four coordinate tokens.
        box: Box of the target of a localization question, (left, top, right, bottom) in pixels.
        kind: What the wording alone says about the answer: the attribute that is asked for, or the place or relation
            that is named.
    """

    task: str
    text: str
    answer: str
    box: tuple[int, int, int, int] | None = None
    kind: str = ""


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


def best_blind(questions: Sequence[SceneQuestion]) -> float:
    """Return the share that the best fixed answer to each wording gets right, without a look at the picture.

    The answers are chosen on one half of the questions and tried on the other, both ways. For boxes they are chosen
    among the boxes of that half, by the number of other boxes that they overlap with an IoU of 0.5.
    """
    right = 0
    for half in (0, 1):
        known, asked = questions[half::2], questions[1 - half :: 2]
        for kind in {question.kind for question in asked}:
            same = [question for question in asked if question.kind == kind]
            examples = [question for question in known if question.kind == kind]
            boxes = [question.box for question in examples if question.box]
            if boxes:
                guess = max(boxes[:100], key=lambda box: sum(iou(box, other) >= 0.5 for other in boxes))
                right += sum(iou(guess, question.box) >= 0.5 for question in same if question.box)
            elif examples:
                word = Counter(question.answer for question in examples).most_common(1)[0][0]
                right += sum(question.answer == word for question in same)
    return right / len(questions)
