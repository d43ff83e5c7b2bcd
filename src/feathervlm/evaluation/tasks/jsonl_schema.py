"""One line of a JSONL file of questions: its keys, their types, and messages for everything else."""

import json
import math
from dataclasses import dataclass
from typing import Any

FORMAT = (
    'a line is {"image": path, "prompt": text, "box": [left, top, right, bottom]}, or has "answers": [text, ...] in '
    "place of the box"
)
REQUIRED = ("image", "prompt")
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
"""Every key with a description of its values."""


class Broken(Exception):  # noqa: N818 - users see a `PruningError` with the same text
    """A line that cannot be read; the message says why."""


@dataclass(frozen=True)
class Line:
    """The values of a line; null counts as missing."""

    image: str
    prompt: str
    id: str | int | None = None
    box: list[float] | None = None
    answers: list[str] | None = None
    answer: str | None = None
    task: str | None = None

    @property
    def right(self) -> tuple[str, ...]:
        """The right answers; empty if a box is right."""
        return (self.answer,) if self.answer is not None else tuple(self.answers or ())


def parse(text: str) -> Line:
    """Return the values of a line, or raise `Broken`."""
    raw = _object(text)
    problems = [f"no {key!r}" for key in REQUIRED if key not in raw]
    known = {key: raw[key] for key in MUST_BE if key in raw and not (raw[key] is None and key not in REQUIRED)}
    problems += [
        f"{key}={short(value)} must be {MUST_BE[key]}" for key, value in known.items() if not _fits(key, value)
    ]
    problems += [f"unknown key {short(key)}" for key in raw if key not in MUST_BE]
    if problems:
        raise Broken(", ".join(problems))
    line = Line(**known | {"box": list(map(float, known["box"]))} if "box" in known else known)
    for key in TEXTS:
        if isinstance(value := getattr(line, key), str) and not value.strip():
            raise Broken(f"{key!r} is empty")
    targets = [key for key in ("box", "answers", "answer") if getattr(line, key) is not None]
    if len(targets) != 1:
        names = " and ".join(map(repr, targets)) or "nothing"
        raise Broken(f"{names} to compare with; give either 'box' or 'answers'")
    if line.box is None and not (line.right and all(map(normal, line.right))):
        raise Broken(f"{targets[0]}={short(getattr(line, targets[0]))} leaves nothing to compare with")
    return line


def _object(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
        json.dumps(raw, ensure_ascii=False).encode()  # escapes may spell what is no text
    except RecursionError:
        raise Broken("no valid JSON (too many levels)") from None
    except ValueError as error:
        raise Broken(f"no valid JSON ({str(error).split(': line 1 ')[0]})") from None
    if not isinstance(raw, dict):
        raise Broken(f"{short(raw)} is no JSON object")
    return raw


def _fits(key: str, value: Any) -> bool:
    match key:
        case "id":
            return isinstance(value, str | int) and not isinstance(value, bool)
        case "box":
            return isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value))
        case "answers":
            return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return isinstance(value, str)


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def normal(answer: str) -> str:
    """Return an answer in lower case, without outer spaces and without a final full stop.

    >>> normal(" Two. ")
    'two'
    """
    return " ".join(answer.lower().split()).removesuffix(".")


def short(value: object) -> str:
    """Return a value as it is written in Python, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
