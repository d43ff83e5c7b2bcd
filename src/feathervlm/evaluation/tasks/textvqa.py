"""TextVQA: questions that need the text in a picture (arXiv 1904.08920, version 0.5.1, the validation split)."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from feathervlm.evaluation.metrics.vqa import score_textvqa
from feathervlm.evaluation.tasks.base import BRIEF, Grade, Question, Reading, Task
from feathervlm.utils.schema import Number, Text, record, records

ANSWERS = Annotated[list[str], Field(min_length=1)]
FILE = record(data=records(record(question_id=Number, image_id=Text, question=Text, answers=ANSWERS)))


class TextVQA(Task):
    """Questions answered in a word or phrase, without recognized text in the prompt.

    This is the variant that the paper reports; its harness reads the questions from a copy of this file, and asks each
    a second time with recognized text.
    """

    name = "textvqa"
    title = "TextVQA"
    count = 5000
    fetch = (
        "put TextVQA_0.5.1_val.json (textvqa.org) into textvqa, and unpack train_val_images.zip from there so that "
        "the pictures are in textvqa/train_images"
    )

    def read(self) -> Iterator[Question]:
        # The archive is called train_val_images, and the folder in it train_images.
        folder = next(
            (name for name in ("train_val_images", "train_images") if (self.data / "textvqa" / name).is_dir()),
            "train_images",
        )
        for row in self.rows("textvqa/TextVQA_0.5.1_val.json", FILE).data:
            yield Question(
                id=f"{row.question_id:06d}",
                prompt=f"{row.question}\n{BRIEF}",
                image=f"textvqa/{folder}/{row.image_id}.jpg",
                target=tuple(row.answers),
            )

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        return Grade(score_textvqa(answer, question.target))
