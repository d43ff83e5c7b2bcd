"""Questions of the user: a file of JSON objects, one per line, about pictures beside it.

Every line is checked before anything runs. The pictures are read once, for their sizes and their hashes, so that other
processes open nothing but the pictures that they ask about.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.metrics import Protocol
from feathervlm.evaluation.tasks.base import Grade, Question, Reading, Task, first_of_splits
from feathervlm.evaluation.tasks.jsonl_schema import FORMAT, Line, normal, parse
from feathervlm.utils import files
from feathervlm.utils.schema import listed, short
from feathervlm.utils.text import printable

SUSPECT = (3, 200)
"""Number of boxes, and side of the smallest picture, from which on boxes within 0 to 100 are not taken for pixels."""


class Jsonl(Task):
    """Questions of a file; each value of `task` in it is a split, and the score is the mean over splits.

    Args:
        path: The JSONL file.

    Raises:
        PruningError: The file cannot be read or is empty, or lines are broken; the message says which, and why.
    """

    average = "splits"
    longest = None
    needs_template = False

    def __init__(self, path: Path) -> None:
        super().__init__(path.absolute().parent)
        self.path = path
        self.name = self.title = printable(path.name)
        self._questions: list[Question] = []
        self._ids: dict[str, int] = {}
        self._kinds: dict[str, tuple[str, int]] = {}
        lines, broken = list[Line](), []
        text = files.read_text(path, "give the JSONL file", "data file")
        # splitlines() would also split at characters that JSON allows inside a text.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    lines.append(parse(line))
                    self._questions.append(self._question(number, lines[-1]))
                except ValueError as error:
                    broken.append(f"line {number}: {str(error).rstrip('.')}")
        name = printable(path)
        if broken:
            raise PruningError(f"{name} has broken lines: {listed(broken)} - mend them: {FORMAT}.")
        if not self._questions:
            raise PruningError(f"{name} holds no question; {FORMAT}.")
        self._check_formats(name, lines)
        self.localizes = any(question.box for question in self._questions)

    def upright(self, protocol: Protocol = "symmetric") -> bool:
        return True

    def read(self) -> Iterator[Question]:
        """Yield the questions in the order of the file."""
        yield from self._questions

    def questions(self, limit: int | None) -> list[Question]:
        """Return the questions in the order of the file; a limit takes the first of every split."""
        return list(self._questions) if limit is None else first_of_splits(self._questions, limit)

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """Grade by IoU, or by comparison with the right answers without case and final full stop."""
        if question.box is not None:
            return reading.localize(answer, question.box)
        return Grade(float(normal(answer) in map(normal, question.target)))

    def missing(self, path: Path) -> PruningError:
        return PruningError(f"There is no image file {short(printable(path), ends=True)}; check the path.")

    def _question(self, number: int, line: Line) -> Question:
        """Return the question of a line, or raise a ValueError, also if it contradicts the lines before."""
        box = line.pixels(self.facts(line.image, upright=True).size)
        split = line.task or ("localization" if box else "other")
        name, kind = str(number if line.id is None else line.id), "box" if box else "answers"
        other, first = self._kinds.setdefault(split, (kind, number))
        if other != kind:
            raise ValueError(
                f"task {short(split)} has {kind} here and {other} in line {first}; give them tasks of their own"
            )
        if self._ids.setdefault(name, number) != number:
            raise ValueError(f"id {short(name)} is also that of line {self._ids[name]}")
        return Question(name, line.prompt, line.image, line.right or None, box, split)

    def _check_formats(self, name: str, all_lines: Sequence[Line]) -> None:
        """Refuse boxes of which the whole file shows that they are not what they would be taken for."""
        for form, end, other in ((None, 100.0, "percent"), ("percent", 1.0, "fractions")):
            lines = [line for line in all_lines if line.box and line.box_format == form]
            boxes = {(*line.box, line.image) for line in lines if line.box}
            side = min((min(self._facts[line.image].size) for line in lines), default=0)
            if not lines or side <= end or any(max(line.box or ()) > end for line in lines):
                continue
            said = (
                f"all boxes of {name} lie within 0 to {end:g}, and so would boxes in {other}; say which they are with "
                f'"box_format": "{form or "pixels"}" or "{other}"'
            )
            if len(boxes) >= SUSPECT[0] and side >= SUSPECT[1]:
                raise PruningError(f"{said[0].upper()}{said[1:]}.")
            warnings.warn(f"feathervlm reads boxes as {form or 'pixels'}, but {said}.", stacklevel=4)
