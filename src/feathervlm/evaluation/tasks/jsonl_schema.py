"""One line of a user's questions: what it may say, and in a few words what is wrong with it.

Knows no file and no picture.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from feathervlm.evaluation.tasks.study_data import normal

FORMAT = (
    'a line is {"image": path, "prompt": text, "box": [left, top, right, bottom]}, or has "answers": [text, ...] in '
    "place of the box"
)
TEXTS = ("image", "prompt", "answer", "task", "id")
MUST_BE = {
    "id": "text or a whole number",
    "image": "a path",
    "prompt": "text",
    "box": "four numbers [left, top, right, bottom]",
    "answers": "a list of texts",
    "answer": "text",
    "task": "a name",
}


class Broken(Exception):  # noqa: N818 - no user ever sees it: `PruningError` tells it
    """What is wrong with a line."""


class Line(BaseModel):
    """What a line may say; null is the same as nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    image: str
    prompt: str
    id: str | int | None = None
    box: list[float] | None = Field(default=None, min_length=4, max_length=4)
    answers: list[str] | None = None
    answer: str | None = None
    task: str | None = None

    @property
    def right(self) -> tuple[str, ...]:
        """The right answers; none if a box is."""
        return (self.answer,) if self.answer is not None else tuple(self.answers or ())


def parse(text: str) -> Line:
    """What a line says, or raise `Broken`."""
    try:
        raw = from_json(text)
    except ValueError as error:
        raise Broken(f"no valid JSON ({str(error).split(' at line 1 ')[0]})") from None
    if not isinstance(raw, dict):
        raise Broken(f"{short(raw)} is no JSON object")
    try:
        line = Line.model_validate(raw)
    except ValidationError as error:
        raise Broken(", ".join(dict.fromkeys(_complaints(error, raw)))) from None
    for key in TEXTS:
        if isinstance(value := getattr(line, key), str) and not value.strip():
            raise Broken(f"{key!r} is empty")
    given = [key for key in ("box", "answers", "answer") if getattr(line, key) is not None]
    if len(given) != 1:
        raise Broken(f"{' and '.join(map(repr, given)) or 'nothing'} to compare with; give either 'box' or 'answers'")
    if line.box is None and not (line.right and all(map(normal, line.right))):
        raise Broken(f"{given[0]}={short(getattr(line, given[0]))} leaves nothing to compare with")
    return line


def _complaints(error: ValidationError, raw: dict[str, Any]) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False):
        key = str(problem["loc"][0])
        if key not in raw:
            yield f"no {key!r}"
        elif key not in MUST_BE:
            yield f"unknown key {short(key)}"
        else:
            yield f"{key}={short(raw[key])} must be {MUST_BE[key]}"


def short(value: object) -> str:
    """A value as it would be written in Python, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
