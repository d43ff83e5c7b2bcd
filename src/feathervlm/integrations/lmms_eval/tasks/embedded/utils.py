"""The questions of `feathervlm.embedded.benchmark`, drawn and graded by the same code, as lmms-eval asks for them.

A question is drawn whenever it is needed: with few of them asked, the others cost nothing.
"""

from typing import Any

from PIL import Image

from feathervlm.embedded.questions import SceneQuestion, grade, read_box
from feathervlm.embedded.scenes import Scene
from feathervlm.embedded.tasks import HELD_OUT, TASKS, sample


def questions(exam: Any) -> Any:
    """Which questions an exam has, which is one row that says how many per task and with what seed."""
    row = exam[0]
    seed = HELD_OUT + row["seed"]
    asked = [{"task": task, "seed": seed, "index": index} for index in range(row["n"]) for task in TASKS]
    return type(exam).from_list(asked)


def _drawn(document: dict[str, Any]) -> tuple[Scene, SceneQuestion]:
    return sample(document["task"], document["seed"], document["index"])


def pictures(document: dict[str, Any]) -> list[Image.Image]:
    """The scene that is asked about."""
    return [_drawn(document)[0].image]


def prompt(document: dict[str, Any]) -> str:
    """What is asked."""
    return _drawn(document)[1].text


def target(document: dict[str, Any]) -> str:
    """The right answer; a box need not be met to the pixel."""
    return _drawn(document)[1].answer


def score(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer is right, for all tasks and its own; for boxes whether it could be read."""
    _, question = _drawn(document)
    right = float(grade(question, results[0])[0])
    failed = {} if question.box is None else {"parse_failures": float(read_box(results[0]) is None)}
    return {"accuracy": right, question.task: right, **failed}
