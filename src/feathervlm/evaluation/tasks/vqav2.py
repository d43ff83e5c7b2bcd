"""VQAv2: open questions about COCO pictures (arXiv 1612.00837, the validation split)."""

from collections.abc import Iterator

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.metrics.vqa import score_vqav2
from feathervlm.evaluation.tasks.base import BRIEF, Grade, Question, Reading, Task
from feathervlm.utils.schema import Number, People, Text, record, records

QUESTIONS = record(questions=records(record(question_id=Number, image_id=Number, question=Text)))
ANSWERS = record(annotations=records(record(question_id=Number, answer_type=Text, answers=People)))


class VQAv2(Task):
    """Questions answered in a word or phrase, scored by agreement with ten people; the splits are kinds of answers."""

    name = "vqav2"
    title = "VQAv2"
    count = 214354
    fetch = (
        "unpack v2_Questions_Val_mscoco.zip and v2_Annotations_Val_mscoco.zip (visualqa.org) into vqav2, and "
        "val2014.zip (cocodataset.org) so that there is coco/val2014"
    )

    def read(self) -> Iterator[Question]:
        document = self.rows("vqav2/v2_mscoco_val2014_annotations.json", ANSWERS)
        annotations = {row.question_id: row for row in document.annotations}
        for row in self.rows("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", QUESTIONS).questions:
            found = annotations.get(row.question_id)
            if found is None:
                raise PruningError(f"Question {row.question_id} of VQAv2 has no answers; get both files again.")
            yield Question(
                id=f"{row.question_id:012d}",
                prompt=f"{row.question}\n{BRIEF}",
                image=f"coco/val2014/COCO_val2014_{row.image_id:012d}.jpg",
                target=tuple(one.answer for one in found.answers),
                split=found.answer_type,
            )

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        return Grade(score_vqav2(answer, question.target, reading.protocol))
