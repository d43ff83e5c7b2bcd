"""GQA: compositional questions about real pictures (arXiv 1902.09506, the balanced test-dev split)."""

from collections.abc import Iterator

from feathervlm.evaluation.metrics.gqa import score_gqa
from feathervlm.evaluation.tasks.base import BRIEF, Grade, Question, Reading, Task
from feathervlm.utils.schema import Text, record, records_by_name

ROW = record(imageId=Text, question=Text, answer=Text)


class GQA(Task):
    """Questions with one expected word or phrase."""

    name = "gqa"
    title = "GQA"
    count = 12578
    fetch = (
        "put testdev_balanced_questions.json of questions1.2.zip (the GQA download page of Stanford) into gqa, and "
        "unpack images.zip from there so that there is gqa/images"
    )

    def read(self) -> Iterator[Question]:
        for key, row in self.rows("gqa/testdev_balanced_questions.json", records_by_name(ROW)).items():
            yield Question(
                id=key,
                prompt=f"{row.question}\n{BRIEF}",
                image=f"gqa/images/{row.imageId}.jpg",
                target=row.answer,
            )

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        return Grade(score_gqa(answer, question.target, reading.protocol))
