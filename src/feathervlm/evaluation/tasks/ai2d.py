"""AI2D: questions about the diagrams of school books (arXiv 1603.07396, all questions)."""

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.tasks.base import Question
from feathervlm.evaluation.tasks.choice import Choice, letters
from feathervlm.utils.schema import Text, record, records_by_name

TEST_ID = re.compile(r"\"?0*(\d+)(\.png|\.jpe?g)?\"?[,;]*", re.IGNORECASE)
"""A line of the list of test pictures: a number, also with the suffix of the picture, in quotes or before a comma."""


QUESTION = record(
    answerTexts=Annotated[list[str], Field(min_length=4, max_length=4)],
    correctAnswer=Annotated[int, Field(ge=0, lt=4)],
    questionId=Text,
)
DIAGRAM = record(imageName=Text, questions=records_by_name(QUESTION))
"""The file of a diagram, with its questions by their text."""


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
        tests = self._tests("ai2d/ai2d_test_ids.csv")
        folder = self.data / "ai2d/questions"
        if not folder.is_dir():
            raise self.missing(folder)
        # Files that begin with a dot are those that other systems add to archives.
        paths = {path.name: path.name.partition(".")[0] for path in folder.glob("[!.]*.json")}
        odd = next((name for name, number in paths.items() if not re.fullmatch(r"[0-9]{1,9}", number)), None)
        if odd is not None:
            raise PruningError(f"{odd} in {folder} does not begin with the number of a picture; {self.fetch}.")
        if paths and tests.isdisjoint(map(int, paths.values())):
            raise PruningError(f"No number in ai2d_test_ids.csv is that of a file in {folder}; {self.fetch}.")
        for name, number in sorted(paths.items()):
            document = self.rows(f"ai2d/questions/{name}", DIAGRAM)
            for text, row in document.questions.items():
                prompt, choices = letters(text, row.answerTexts)
                yield Question(
                    id=f"{int(number):05d}-{row.questionId}",
                    prompt=prompt,
                    image=f"ai2d/images/{document.imageName}",
                    target=row.correctAnswer,
                    split="test" if int(number) in tests else "val",
                    choices=choices,
                )

    def _tests(self, name: str) -> set[int]:
        """Return the numbers of the test pictures, one in each line."""
        found: set[int] = set()
        for number, line in enumerate(self.text(name).splitlines(), 1):
            match = TEST_ID.fullmatch(line.strip())
            if match is None and line.strip():
                raise self.broken(name, [f"line {number}: {line.strip()[:40]!r} is not the number of one picture"])
            found |= {int(match[1])} if match else set()
        return found
