"""Boxes as text: how a model is asked for a box, how its answer is read, and what the numbers mean.

A `BoxFormat` describes the notation and the frame in which a family answers "where is X?", and converts between that
text and pixels. Formats of a single family are defined in its own file; formats of several families are defined here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box

Size = tuple[int, int]
"""(width, height) in pixels."""

BRACKETS = "[ {} , {} , {} , {} ]"
"""Four numbers in brackets, with any spacing: inside JSON, inside tags, or bare."""
PAIRS = "( {} , {} ) , ( {} , {} )"
"""Two points in parentheses, with any spacing."""
REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
"""The question for a box in the training data of LLaVA 1.5 and of later models."""

_CORNERS = {"xyxy": (0, 1, 2, 3), "yxyx": (1, 0, 3, 2), "xywh": (0, 1, 2, 3)}
_FREE = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?i:nan|inf(?:inity)?))"


@dataclass(frozen=True)
class BoxFormat:
    """How a family of models is asked for a box and how it writes one.

    Attributes:
        name: The numbers and the notation in a few words.
        prompt: Question for the box of one described `{object}`.
        notations: Formats with four `{}` each. Boxes are written in the first and read in all; a space stands for any
            white space, or none.
        scale: Number at the right and bottom end of the frame; None counts pixels of the resized picture.
        corners: Meaning of the four numbers: xyxy, yxyx, or xywh (left, top, width, height).
        square: Whether the frame is the picture padded to a square, with the picture in the middle.
        cells: Whether the frame is cut into `scale` cells along each side, and numbers name the cells of a box's first
            and last pixels; otherwise numbers are positions of edges.
        decimals: Digits after the point.
        digits: Exact number of digits of every number; 0 for as many as needed.
        whole: Whether an answer counts only if it is one box and nothing else.

    Raises:
        PruningError: If these do not fit together.
    """

    name: str
    prompt: str
    notations: tuple[str, ...]
    scale: int | None
    corners: str = "xyxy"
    square: bool = False
    cells: bool = False
    decimals: int = 0
    digits: int = 0
    whole: bool = False

    def __post_init__(self) -> None:
        if "{object}" not in self.prompt:
            raise PruningError(f"prompt={self.prompt!r} has no place for the description; put {{object}} there.")
        if not self.notations or any(notation.count("{}") != 4 for notation in self.notations):
            raise PruningError(f"notations={self.notations!r} needs at least one, each with four {{}}.")
        if self.corners not in _CORNERS:
            raise PruningError(f"corners={self.corners!r} is not one of {', '.join(_CORNERS)}.")
        if self.scale is not None and self.scale < 1:
            raise PruningError(f"scale={self.scale} is not positive; use None for pixels of the resized picture.")
        if self.cells and (self.scale is None or self.decimals):
            raise PruningError(f"cells need a scale and no decimals, not {self.scale} and {self.decimals}.")

    def ask(self, description: str) -> str:
        """Return the question for the box of what is described ("the red car")."""
        return self.prompt.replace("{object}", description)

    def read(self, answer: str, size: Size, shown: Size | None = None, part: Box | None = None) -> Box | None:
        """Read the first box of an answer, in pixels of the picture, cut to the picture.

        The result is None without a box, or if the first one is invalid: a number missing or NaN, corners in the wrong
        order, nothing of it in the picture, or an end outside the frame by more than one unit of the last digit.
        Rounding explains one unit; anything further off was meant in another frame, and cutting it to fit would be a
        guess. A later valid box does not count: an answer has one try.

        Args:
            answer: Text of the model; reasoning up to `</think>` is skipped.
            size: Size of the original picture.
            shown: Size of the picture as resized for the model; only needed if `scale` is None.
            part: Part of the picture that the model saw, in pixels, where that is not all of it (`Family.shown`); the
                frame is then this part.

        Raises:
            PruningError: If a size is missing or not positive.
        """
        boxes = self.read_all(answer, size, shown, part)
        return boxes[0] if boxes else None

    def read_all(self, answer: str, size: Size, shown: Size | None = None, part: Box | None = None) -> list[Box | None]:
        """Read every box of an answer, in order, as `read` does; None in the place of invalid ones."""
        frame, limits = self._frame(size, shown, part)
        pattern = _pattern(self.notations, self.digits)
        if self.whole:
            matches = [match] if (match := pattern.fullmatch(answer.strip())) else []
        else:
            matches = list(pattern.finditer(_conclusion(answer)))
        return [self._place([float(n) for n in match.groups() if n], frame, limits, size) for match in matches]

    def write(self, box: Sequence[float], size: Size, shown: Size | None = None, part: Box | None = None) -> str:
        """Write a box in pixels of the picture, (left, top, right, bottom), as the family writes it.

        Ends are rounded, but never to an empty box. Arguments are those of `read`.

        Raises:
            PruningError: If the box is empty or outside what is shown, or a size is missing or not positive.
        """
        frame, limits = self._frame(size, shown, part)
        sides = list(zip(box[:2], box[2:], frame[:2], frame[2:], size, strict=True))
        if not all(
            low < high and high > max(start, 0) and low < min(end, side) for low, high, start, end, side in sides
        ):
            raise PruningError(
                f"{tuple(box)} is not a box in what is shown of a picture of {size[0]}x{size[1]}; "
                "give (left, top, right, bottom) in pixels, left < right and top < bottom."
            )
        (left, right), (top, bottom) = (
            self._count(low, high, start, end - start, limit)
            for (low, high, start, end, _), limit in zip(sides, limits, strict=True)
        )
        if self.corners == "xywh":
            right, bottom = right - left, bottom - top
        values = left, top, right, bottom
        numbers = [f"{values[i] / 10**self.decimals:0{self.digits}.{self.decimals}f}" for i in _CORNERS[self.corners]]
        pieces = self.notations[0].split("{}")
        return "".join(piece + number for piece, number in zip(pieces, [*numbers, ""], strict=True))

    def _frame(self, size: Size, shown: Size | None, part: Box | None) -> tuple[Box, tuple[float, float]]:
        """Return the frame in pixels of the picture, and the numbers at its right and bottom end."""
        width, height = size
        if min(size) < 1:
            raise PruningError(f"size={size} of a picture is not positive; give (width, height) in pixels.")
        if part is not None:
            frame = part
        elif self.square:
            side = max(size)
            left, top = -((side - width) // 2), -((side - height) // 2)
            frame = float(left), float(top), float(left + side), float(top + side)
        else:
            frame = 0.0, 0.0, float(width), float(height)
        if self.scale is not None:
            return frame, (float(self.scale), float(self.scale))
        if shown is None or min(shown) < 1:
            raise PruningError(
                f"shown={shown}, but this format counts pixels of the resized picture; give its (width, height)."
            )
        return frame, (float(shown[0]), float(shown[1]))

    def _place(self, numbers: list[float], frame: Box, limits: tuple[float, float], size: Size) -> Box | None:
        """Convert four numbers to pixels of the picture; None if they are not a box in it."""
        left, top, right, bottom = (numbers[i] for i in _CORNERS[self.corners])
        if self.corners == "xywh":
            right, bottom = left + right, top + bottom
        ends: list[tuple[float, float]] = []
        for low, high, start, end, limit, side in zip(
            (left, top), (right, bottom), frame[:2], frame[2:], limits, size, strict=True
        ):
            first, last = (0.0, limit - 1) if self.cells else (-(10.0**-self.decimals), limit + 10.0**-self.decimals)
            # The comparisons are written so that NaN fails.
            if not (first <= low <= last and first <= high <= last and (low <= high if self.cells else low < high)):
                return None
            unit = (end - start) / limit
            # Ends are the middle of the pixels that fall into a cell, extended to the whole pixel.
            inset = (unit - 1) / 2 if self.cells else 0.0
            one = max(start + unit * low + inset, 0.0)
            other = min(start + unit * high + inset + (1.0 if self.cells else 0.0), float(side))
            if not one < other:
                return None
            ends.append((one, other))
        return ends[0][0], ends[1][0], ends[0][1], ends[1][1]

    def _count(self, low: float, high: float, start: float, length: float, limit: float) -> tuple[int, int]:
        """Return both ends of a box along one axis, in units of the last digit."""
        largest = floor(limit * 10**self.decimals) - self.cells
        if self.digits:
            largest = min(largest, 10**self.digits - 1)
        scale = limit * 10**self.decimals / length
        one, other = (low - start) * scale, (high - self.cells - start) * scale
        if self.cells:
            first = min(max(floor(one), 0), largest)
            return first, min(max(floor(other), first), largest)
        first, last = round(one), round(other)
        if first == last:
            first, last = floor(one), ceil(other)
        first = min(max(first, 0), largest - 1)
        return first, min(max(last, first + 1), largest)


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


def _conclusion(answer: str) -> str:
    """Return an answer without its reasoning, in which boxes are only considered; empty if the reasoning never ends."""
    return answer.rpartition("</think>")[2].partition("<think>")[0]


@lru_cache
def _pattern(notations: tuple[str, ...], digits: int) -> re.Pattern[str]:
    """Return a pattern that matches a box in any of the notations; each has four groups."""
    number = rf"(\d{{{digits}}})" if digits else _FREE
    return re.compile(
        "|".join(
            number.join(r"\s*".join(re.escape(text) for text in piece.split(" ")) for piece in notation.split("{}"))
            for notation in notations
        )
    )


FRACTIONS_OF_SQUARE = BoxFormat(
    name="fractions of the padded picture, in brackets",
    prompt=REGION + "{object}",
    notations=("[{}, {}, {}, {}]", BRACKETS),
    scale=1,
    square=True,
    decimals=2,
)
"""LLaVA 1.5: fractions, two decimals, of the picture padded to a square.

haotian-liu/LLaVA#623 quotes prompt and answer from the training mix. That numbers refer to the padded picture is what
users found by drawing them (haotian-liu/LLaVA#606; #822 doubts it for RefCOCO). A processor that crops the centre
shows another part: pass it as `part`.
"""

THOUSANDTHS_JSON = BoxFormat(
    name="thousandths, JSON",
    prompt='Locate every object that matches the description "{object}" in the image. '
    "Report bbox coordinates in JSON format.",
    notations=('{"bbox_2d": [{}, {}, {}, {}]}', BRACKETS),
    scale=1000,
)
"""Qwen3-VL: thousandths of the picture, as JSON.

QwenLM/Qwen3-VL#1427 and #1486 (0 to 1000, say its developers) and #1927 (the JSON); the prompt is that of
EvolvingLMMs-Lab/lmms-eval#1373.
"""
