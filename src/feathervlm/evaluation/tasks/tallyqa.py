"""TallyQA: counting (arXiv 1810.12440, the test split, simple and complex questions)."""

from collections.abc import Iterator

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.choice import Choice, letters

NUMBERS = tuple(map(str, range(16)))
"""Answers to choose from; their letters are in the same order, A for 0."""


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
        for row in self.json("tallyqa/test.json"):
            answer = row["answer"]
            if not isinstance(answer, int) or not 0 <= answer < len(NUMBERS):
                raise PruningError(
                    f"answer={answer!r} of question {row['question_id']} in tallyqa/test.json is not 0 to 15; get the "
                    "test split."
                )
            prompt, choices = letters(row["question"], NUMBERS)
            yield Question(
                id=str(row["question_id"]),
                prompt=prompt,
                image=f"visual-genome/{row['image']}",
                target=answer,
                split="simple" if row["issimple"] else "complex",
                choices=choices,
            )
