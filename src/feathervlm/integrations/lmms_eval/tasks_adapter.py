"""Tasks of `feathervlm.evaluation` as lmms-eval asks for them: the same files, questions and rules.

Their files lie below the folder that the environment names. Knows lmms-eval's way to call, and no task by name.
"""

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from feathervlm.core.boxes import Size
from feathervlm.core.errors import PruningError
from feathervlm.evaluation.metrics.grounding import rounded
from feathervlm.evaluation.tasks.base import Question, Reading, Task
from feathervlm.integrations.lmms_eval.scoring import chosen

FOLDER = "FEATHERVLM_DATA"
"""The environment variable that names the folder."""


def folder() -> Path:
    """Where the files are.

    Raises:
        PruningError: if the environment does not say, or there is no such folder.
    """
    named = os.environ.get(FOLDER, "")
    if not named or not Path(named).is_dir():
        raise PruningError(f"{FOLDER}={named!r} is no folder; set it to the one that holds the question files.")
    return Path(named)


class Local:
    """One task, for the functions that its YAML names.

    Args:
        kind: of task.
        size: of every picture in pixels, where boxes are asked for.

    Attributes:
        functions: what lmms-eval calls, in the order of `process_docs`, `doc_to_visual`, `doc_to_text`, `doc_to_target`
            and `process_results`.
    """

    def __init__(self, kind: type[Task], size: Size = (1, 1)) -> None:
        self.kind, self.size = kind, size
        self.functions = self.questions, self.pictures, self.prompt, self.target, self.score

    def questions(self, source: Any) -> Any:
        """All questions as the data set that lmms-eval asks, in the order of `Task.shuffled`.

        Args:
            source: lmms-eval's data set of one row that stands for the files.

        Raises:
            PruningError: if a file or a picture is missing, or not what it should be.
        """
        task = self.kind(folder())
        found = task.shuffled()
        task.check(found)
        return type(source).from_list([vars(question) | {"target": json.dumps(question.target)} for question in found])

    def pictures(self, document: dict[str, Any]) -> list[Image.Image]:
        """The picture that is asked about."""
        return [self.kind(folder()).picture(document["image"])]

    def prompt(self, document: dict[str, Any]) -> str:
        """As the paper asks; feathervlm's own model asks for boxes as its family was trained to be asked."""
        return self.kind(Path()).prompt(_question(document), "paper", None)

    def target(self, document: dict[str, Any]) -> str:
        """The right answer as it would be written."""
        question = _question(document)
        if question.choices:
            return question.choices[question.target]
        return str(list(rounded(question.target, self.size)))

    def score(self, document: dict[str, Any], results: list[str]) -> dict[str, float]:
        """Whether the answer is right, for all and for its split, and whether it was one at all."""
        question, answer = _question(document), results[0]
        failed = False
        if question.choices:
            found = chosen(answer, question.choices)
            answer, failed = found or "", found is None
        grade = self.kind(Path()).grade(question, answer, Reading("paper", self.size, lambda _: None))
        splits = {question.split: grade.score} if question.split else {}
        return {"accuracy": grade.score, **splits, "parse_failures": float(failed or grade.valid is False)}


def _question(document: dict[str, Any]) -> Question:
    told = {"target": json.loads(document["target"]), "choices": tuple(document["choices"])}
    return Question(**{**document, **told})
