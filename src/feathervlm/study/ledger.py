"""What has been answered so far, on disk: one file of lines per run, written as the answers come.

A run is one method over all questions. Questions are answered in chunks, and a chunk's lines are written at once; after
a kill, whatever is not a whole chunk is thrown away and asked again, so that nothing is lost or counted twice. Knows
nothing of what the answers mean.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Record:
    """One answer.

    Attributes:
        question: its number in the data set.
        answer: as written.
        right: whether it counts.
        iou: with the true box; None unless the question asks for one.
        box: that the answer names, in pixels; None if it names no valid one.
        top: whether the target's centre lies in the top half of the picture; None without a target.
        tokens: visual tokens per layer, averaged over layers; None if nothing was pruned.
        flops: FLOPs of the batch's prefill over those of the unpruned one; None if nothing was pruned.
        shape: (frames, rows, cols) of the picture's finest grid; None if nothing was pruned.
        kept: for each stage the cells of that grid that stayed, as `kept.pack` writes them.
        covers: what that grid covers of the picture, in pixels.
        target: the true box in shares of what that grid covers; None without one, or if nothing was pruned.
    """

    question: int
    answer: str
    right: bool
    iou: float | None = None
    box: Box | None = None
    top: bool | None = None
    tokens: float | None = None
    flops: float | None = None
    shape: tuple[int, int, int] | None = None
    kept: tuple[str, ...] = ()
    covers: Box | None = None
    target: Box | None = None


class Ledger:
    """The answers of a study, in `folder`.

    Args:
        folder: is made if need be.
        key: what all answers depend on but the method: model, data, settings. A folder with another key is refused.
        begun: what else is worth knowing of the time when the first answer was given; kept from then on.

    Raises:
        PruningError: the folder holds answers of another study.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], begun: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        known, mine = folder / "key.json", json.dumps(key, indent=1, sort_keys=True) + "\n"
        if not known.exists():
            draft = folder / ".key.partial"
            draft.write_text(mine)
            (folder / "begun.json").write_text(json.dumps(begun or {}) + "\n")
            draft.replace(known)
        elif (found := known.read_text()) != mine:
            changed = ", ".join(_differences(json.loads(found), json.loads(mine)))
            raise PruningError(
                f"{folder.parent} holds a study of something else ({changed}); give another --out, or delete that one."
            )

    @property
    def begun(self) -> dict[str, Any]:
        """What was noted when the first answer was given."""
        found: dict[str, Any] = json.loads((self.folder / "begun.json").read_text())
        return found

    def read(self, method: str, chunks: Sequence[Sequence[int]]) -> dict[int, Record]:
        """The answers of a run that are complete, by question.

        Args:
            method: its spec, or `UNPRUNED`.
            chunks: the questions that belong together; a chunk with one missing is dropped from the file, too.
        """
        path = self._path(method)
        content = path.read_text() if path.exists() else ""
        found = {record.question: record for record in _records(content)}
        whole = {question for chunk in chunks if all(number in found for number in chunk) for question in chunk}
        kept = {question: found[question] for question in found if question in whole}
        if content != (expected := "".join(map(_line, kept.values()))):
            draft = path.with_suffix(".partial")
            draft.write_text(expected)
            draft.replace(path)
        return kept

    def append(self, method: str, records: Sequence[Record]) -> None:
        """Write a whole chunk."""
        with self._path(method).open("a") as file:
            file.write("".join(map(_line, records)))

    def _path(self, method: str) -> Path:
        words = re.sub(r"[^a-z0-9.+=-]+", "_", method)[:60].strip("_")
        return self.folder / f"{words}-{hashlib.sha256(method.encode()).hexdigest()[:8]}.jsonl"


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"


def _records(content: str) -> list[Record]:
    """The records of a file; a last line that was cut off is left out."""
    lines = content.split("\n")[:-1]
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [Record(**{key: _frozen(value) for key, value in fields.items()}) for fields in found]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
