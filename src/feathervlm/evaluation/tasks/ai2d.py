"""AI2D: questions about the diagrams of school books (arXiv 1603.07396, all questions)."""

from collections.abc import Iterator

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.choice import Choice, letters


class AI2D(Choice):
    """A choice of four; the score is that of all questions together, as in the paper.

    The split `test` holds the questions whose picture is in the list of test pictures, and is comparable with other
    work; `val` holds all others, also those for training. The diagrams are those with labels, not letters.
    """

    name = "ai2d"
    title = "AI2D"
    count = 15501
    fetch = (
        "unpack ai2d-all.zip (allenai.org, AI2D) into ai2d so that there are ai2d/questions and ai2d/images, and put "
        "ai2d_test_ids.csv from there into ai2d"
    )

    def read(self) -> Iterator[Question]:
        tests = set(self.text("ai2d/ai2d_test_ids.csv").split())
        folder = self.data / "ai2d/questions"
        if not folder.is_dir():
            raise self.missing(folder)
        for path in sorted(folder.glob("*.json")):
            document = self.json(f"ai2d/questions/{path.name}")
            number = path.name.partition(".")[0]
            for text, row in document["questions"].items():
                if len(row["answerTexts"]) != 4 or not 0 <= row["correctAnswer"] < 4:
                    raise PruningError(f"A question of {path} has no four answers with one right; get it again.")
                prompt, choices = letters(text, row["answerTexts"])
                yield Question(
                    id=f"{int(number):05d}-{row['questionId']}",
                    prompt=prompt,
                    image=f"ai2d/images/{document['imageName']}",
                    target=int(row["correctAnswer"]),
                    split="test" if number in tests else "val",
                    choices=choices,
                )
