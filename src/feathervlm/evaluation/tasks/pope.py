"""POPE: whether an object is in the picture (arXiv 2305.10355, on COCO)."""

from collections.abc import Iterator, Sequence
from typing import Literal

from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.tasks.base import BRIEF, Question
from feathervlm.evaluation.tasks.choice import Choice
from feathervlm.utils.schema import Number, Text, record

SUBSETS = ("adversarial", "popular", "random")
"""Ways in which the absent objects were chosen."""
CHOICES = ("Yes", "No")


LINE = record(question_id=Number, image=Text, text=Text, label=Literal["yes", "no"])


class POPE(Choice):
    """Yes or no; the score is the mean of the three subsets, of which `random` has fewer rows."""

    name = "pope"
    title = "POPE"
    average = "splits"
    count = 8910
    fetch = (
        "put coco_pope_adversarial.json, coco_pope_popular.json and coco_pope_random.json (github.com/AoiDragon/POPE "
        "at commit e3e3926, where random has 2910 rows) into pope, and unpack val2014.zip (cocodataset.org) so that "
        "there is coco/val2014"
    )

    def read(self) -> Iterator[Question]:
        for subset in SUBSETS:
            for row in self.lines(f"pope/coco_pope_{subset}.json", LINE):
                yield Question(
                    id=f"{subset}-{row.question_id:05d}",
                    prompt=f"{row.text}\n{BRIEF}",
                    image=f"coco/val2014/{row.image}",
                    target=CHOICES.index(row.label.capitalize()),
                    split=subset,
                    choices=CHOICES,
                )

    @classmethod
    def more(cls, samples: Sequence[Sample]) -> dict[str, float]:
        """Return the F1 of `yes` over all questions, and the share of answers that are `yes`."""
        said = sum(sample.answer == "Yes" for sample in samples)
        hit = sum(sample.answer == "Yes" and sample.score == 1 for sample in samples)
        missed = sum(sample.answer == "No" and sample.score == 0 for sample in samples)
        there = hit + missed
        return {"f1": 2 * hit / (said + there) if said + there else 0.0, "yes": said / len(samples)}
