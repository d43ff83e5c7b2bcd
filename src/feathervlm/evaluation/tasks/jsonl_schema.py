"""One line of a JSONL file of questions: its keys, their types, and messages for everything else."""

import json
from typing import Any, Literal, Self

from pydantic import ConfigDict, ValidationError, model_validator

from feathervlm.core.boxes import Size
from feathervlm.core.layout import Box
from feathervlm.evaluation.tasks.base import inside
from feathervlm.utils.schema import AnnotationRow, Four, Text, problems, short

FORMAT = (
    'a line is {"image": path, "prompt": text, "box": [left, top, right, bottom]}, or has "answers": [text, ...] in '
    "place of the box"
)
MUST_BE = {
    "id": "text or a whole number",
    "image": "a path",
    "prompt": "text",
    "box": "four numbers [left, top, right, bottom]",
    "box_format": "pixels, fractions, percent or xywh",
    "answers": "a list of texts",
    "answer": "text",
    "task": "a name",
}
"""Every key with a description of its values."""
ROUNDING = 0.01
"""Pixels by which a box may exceed its picture, because left + width is computed in floats."""
WHOLE = {"fractions": 1.0, "percent": 100.0}
"""The number at the right and bottom end of a picture in formats that do not count pixels."""


class Line(AnnotationRow):
    """The values of a line; null counts as missing."""

    model_config = ConfigDict(extra="forbid")

    image: Text
    prompt: Text
    id: int | Text | None = None
    box: Four | None = None
    box_format: Literal["pixels", "fractions", "percent", "xywh"] | None = None
    answers: list[str] | None = None
    answer: Text | None = None
    task: Text | None = None

    @property
    def right(self) -> tuple[str, ...]:
        """The right answers; empty if a box is right."""
        return (self.answer,) if self.answer is not None else tuple(self.answers or ())

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        targets = [key for key in ("box", "answers", "answer") if getattr(self, key) is not None]
        if len(targets) != 1:
            names = " and ".join(map(repr, targets)) or "nothing"
            raise ValueError(f"{names} to compare with; give either 'box' or 'answers'")
        if self.box is None and not (self.right and all(map(normal, self.right))):
            raise ValueError(f"{targets[0]}={short(getattr(self, targets[0]))} leaves nothing to compare with")
        if self.box is None and self.box_format is not None:
            raise ValueError("'box_format' without a 'box'")
        return self

    def pixels(self, size: Size) -> Box | None:
        """Return the box in pixels of a picture of (width, height); None without a box.

        Raises:
            ValueError: The numbers cannot be what the line says that they are.
        """
        if self.box is None:
            return None
        left, top, right, bottom = self.box
        whole, shown = WHOLE.get(self.box_format or ""), f"box={self.box}"
        if whole and not all(-1e-6 <= number / whole <= 1 + 1e-6 for number in self.box):
            raise ValueError(f"{shown} has numbers outside of 0 to {whole:g}, which are not {self.box_format}")
        if whole:
            left, top, right, bottom = (end / whole * side for end, side in zip(self.box, size * 2, strict=True))
        if self.box_format == "xywh":
            right, bottom = left + right, top + bottom
        said = "" if self.box_format else '; if it is not in pixels, name its "box_format"'
        if not (left < right and top < bottom):
            raise ValueError(f"{shown} needs left < right and top < bottom{said}")
        if not inside((left, top, right, bottom), size, ROUNDING):
            raise ValueError(f"{shown} sticks out of its picture of {size[0]}x{size[1]} pixels{said}")
        if min(right - left, bottom - top) < 1 or (not self.box_format and max(self.box) <= 1 < min(size)):
            raise ValueError(f"{shown} is smaller than a pixel of its picture{said}")
        return left, top, right, bottom


def parse(text: str) -> Line:
    """Return the values of a line, or raise a ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{short(next(key for key in keys if keys.count(key) > 1))} occurs twice")
        return dict(pairs)

    try:
        raw = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("no valid JSON (too many levels)") from None
    except ValueError as error:
        raise ValueError(f"no valid JSON ({str(error).split(': line 1 ')[0]})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{short(raw)} is no JSON object")
    try:
        return Line.model_validate(raw)
    except ValidationError as error:
        raise ValueError(", ".join(problems(error, MUST_BE, raw))) from None


def normal(answer: str) -> str:
    """Return an answer in lower case, without outer spaces and without a final full stop.

    >>> normal(" Two. ")
    'two'
    """
    return " ".join(answer.lower().split()).removesuffix(".")
