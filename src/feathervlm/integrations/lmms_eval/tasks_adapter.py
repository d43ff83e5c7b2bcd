"""Tasks of `feathervlm.evaluation` for lmms-eval, with the same files, questions and rules.

Their files are below the directory in the environment variable FEATHERVLM_DATA.
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
"""Environment variable with the directory of the files."""


def folder() -> Path:
    """Return the directory of the files.

    Raises:
        PruningError: The environment variable is not set, or there is no such directory.
    """
    named = os.environ.get(FOLDER, "")
    if not named or not Path(named).is_dir():
        raise PruningError(f"{FOLDER}={named!r} is no folder; set it to the one that holds the question files.")
    return Path(named)


class TaskAdapter:
    """The functions that the YAML file of a task names.

    Args:
        kind: Class of the task.
        size: (width, height) of every picture in pixels, if boxes are asked for.

    Attributes:
        functions: Functions that lmms-eval calls, in the order of `process_docs`, `doc_to_visual`, `doc_to_text`,
            `doc_to_target` and `process_results`.
    """

    def __init__(self, kind: type[Task], size: Size = (1, 1)) -> None:
        self.kind, self.size = kind, size
        self.functions = self.questions, self.pictures, self.prompt, self.target, self.score

    def questions(self, source: Any) -> Any:
        """Return all questions as a data set of lmms-eval, in the order of `Task.shuffled`.

        Args:
            source: Data set of lmms-eval with one row that stands for the files.

        Raises:
            PruningError: A file or a picture is missing or broken.
        """
        task = self.kind(folder())
        questions = task.shuffled()
        task.check(questions)
        return type(source).from_list(
            [vars(question) | {"target": json.dumps(question.target)} for question in questions]
        )

    def pictures(self, document: dict[str, Any]) -> list[Image.Image]:
        """Return the picture of a question."""
        return [self.kind(folder()).picture(document["image"], upright=False)]

    def prompt(self, document: dict[str, Any]) -> str:
        """Return the prompt of the paper; the model `feathervlm` asks for boxes in the words of its family instead."""
        return self.kind(Path()).prompt(_question(document), "paper", None)

    def target(self, document: dict[str, Any]) -> str:
        """Return the right answer as a model would write it."""
        question = _question(document)
        if question.choices:
            return question.choices[question.target]
        assert question.box is not None, "other tasks have choices"
        return str(list(rounded(question.box, self.size)))

    def score(self, document: dict[str, Any], results: list[str]) -> dict[str, float]:
        """Return whether the answer is right, for all questions and its split, and whether it could not be read."""
        question, answer = _question(document), results[0]
        failed = False
        if question.choices:
            choice = chosen(answer, question.choices)
            answer, failed = choice or "", choice is None
        grade = self.kind(Path()).grade(question, answer, Reading("paper", self.size, lambda _: None))
        splits = {question.split: grade.score} if question.split else {}
        return {"accuracy": grade.score, **splits, "parse_failures": float(failed or grade.valid is False)}


def _question(document: dict[str, Any]) -> Question:
    box = document["box"] and tuple(document["box"])
    restored = {"target": json.loads(document["target"]), "box": box, "choices": tuple(document["choices"])}
    return Question(**{**document, **restored})
