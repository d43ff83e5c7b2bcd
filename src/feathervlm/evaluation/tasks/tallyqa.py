"""TallyQA: counting (arXiv 1810.12440, the test split, simple and complex questions)."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.choice import Choice, letters
from feathervlm.utils.schema import Number, Text, record, records

NUMBERS = tuple(map(str, range(16)))
"""Answers to choose from; their letters are in the same order, A for 0."""


ANSWER = Annotated[int, Field(ge=0, lt=len(NUMBERS))]
"""Other splits have larger answers."""
ROW = record(question_id=Number, image=Text, question=Text, answer=ANSWER, issimple=bool)


class TallyQA(Choice):
    """Counting as a choice of 16 numbers; the score is that of all questions together."""

    name = "tallyqa"
    title = "TallyQA"
    count = 38589
    fetch = (
        "unpack tallyqa.zip (github.com/manoja328/tallyqa) into tallyqa so that there is tallyqa/test.json, and the "
        "pictures of Visual Genome (images.zip, images2.zip) into visual-genome/VG_100K and visual-genome/VG_100K_2"
    )

    def read(self) -> Iterator[Question]:
        for row in self.rows("tallyqa/test.json", records(ROW)):
            prompt, choices = letters(row.question, NUMBERS)
            yield Question(
                id=str(row.question_id),
                prompt=prompt,
                image=f"visual-genome/{row.image}",
                target=row.answer,
                split="simple" if row.issimple else "complex",
                choices=choices,
            )
