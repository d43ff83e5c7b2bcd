"""VizWiz: questions that blind people asked about their own photos (arXiv 1802.08218, the validation split)."""

from collections.abc import Iterator

from feathervlm.evaluation.metrics.vqa import score_vizwiz
from feathervlm.evaluation.tasks.base import BRIEF, Grade, Question, Reading, Task
from feathervlm.utils.schema import Flag, People, Text, record, records

ROW = record(image=Text, question=Text, answers=People, answerable=Flag)


class VizWiz(Task):
    """Questions answered in a word or phrase, or "unanswerable"; the splits are answerable and unanswerable questions.

    Some photos are stored turned; `paper` shows them as they are stored, as in the harness of the paper.
    """

    name = "vizwiz"
    title = "VizWiz"
    count = 4319
    fetch = (
        "put val.json of Annotations.zip (vizwiz.org, visual question answering) at vizwiz/val.json, and unpack "
        "val.zip from there so that there is vizwiz/val"
    )

    def read(self) -> Iterator[Question]:
        for number, row in enumerate(self.rows("vizwiz/val.json", records(ROW))):
            yield Question(
                id=f"{number:05d}",
                prompt=(
                    f"{row.question}\n"
                    "When the provided information is insufficient, respond with 'Unanswerable'.\n"
                    f"{BRIEF}"
                ),
                image=f"vizwiz/val/{row.image}",
                target=tuple(one.answer for one in row.answers),
                split="answerable" if row.answerable else "unanswerable",
            )

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        return Grade(score_vizwiz(answer, question.target, reading.protocol))
