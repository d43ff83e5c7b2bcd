"""Tasks whose answer is a box."""

from typing import ClassVar

from feathervlm.core.boxes import BoxFormat, iou
from feathervlm.evaluation.metrics import Protocol, grounding
from feathervlm.evaluation.tasks.base import Grade, Question, Reading, Task


class Localization(Task):
    """A task whose answer is a box.

    Class attributes:
        threshold: Smallest IoU that counts as right.
    """

    localizes = True
    threshold: ClassVar[float] = 0.5

    def prompt(self, question: Question, protocol: Protocol, boxes: BoxFormat | None) -> str:
        """Return the words of the paper, or those in which the family of the model is asked for boxes."""
        if protocol == "paper":
            return grounding.ask(question.prompt)
        assert boxes is not None, "preflight refuses models whose box format is not known"
        return boxes.ask(question.prompt)

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """Grade by IoU; an invalid box is wrong.

        `paper` compares fractions with the true box rounded to two decimals, `symmetric` pixels with the true box.
        """
        assert question.box is not None, "localization asks for boxes"
        if reading.protocol != "paper":
            return reading.localize(answer, question.box, self.threshold)
        box, true = grounding.literal_box(answer), grounding.rounded(question.box, reading.size)
        overlap = iou(box, true) if box else 0.0
        return Grade(float(overlap >= self.threshold), box is not None, overlap)
