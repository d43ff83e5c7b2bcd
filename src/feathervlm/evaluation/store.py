"""What has been answered so far, on disk: files of JSON lines, one per run, written as the answers come.

Questions are answered in chunks, and a chunk's lines are written at once; after a kill, whatever is not a whole chunk
counts for nothing and is asked again, so that nothing is lost or counted twice. Several processes may share a folder:
each writes to files of its own and reads all. Knows nothing of what the answers mean.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from feathervlm.core.errors import PruningError


class Numbered(Protocol):
    """A dataclass that says which question it answers."""

    @property
    def question(self) -> int:
        """Its number."""
        ...


R = TypeVar("R", bound=Numbered)


class Journal(Generic[R]):
    """The answers of several runs, in `folder`.

    Args:
        folder: is made if need be.
        key: what all answers depend on but the run: model, data, settings. A folder with another key is refused.
        kind: the dataclass of one answer.
        begun: what else is worth knowing of the time when the first answer was given; kept from then on.
        part: the number of this process among those that write to the folder.
        holds: what to call the answers of a folder with another key.

    Raises:
        PruningError: the folder holds answers of something else.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        kind: type[R],
        begun: Mapping[str, Any] | None = None,
        *,
        part: int = 0,
        holds: str = "a study",
    ) -> None:
        self.folder, self.kind, self.part = folder, kind, part
        folder.mkdir(parents=True, exist_ok=True)
        known, mine = folder / "key.json", json.dumps(key, indent=1, sort_keys=True) + "\n"
        if not known.exists():
            _write(folder / "begun.json", json.dumps(begun or {}) + "\n")
            _write(known, mine)
        elif (found := known.read_text()) != mine:
            changed = ", ".join(_differences(json.loads(found), json.loads(mine)))
            raise PruningError(
                f"{folder.parent} holds {holds} of something else ({changed}); give another --out, or delete that one."
            )

    @property
    def begun(self) -> dict[str, Any]:
        """What was noted when the first answer was given."""
        found: dict[str, Any] = json.loads((self.folder / "begun.json").read_text())
        return found

    def read(self, run: str, chunks: Sequence[Sequence[int]]) -> dict[int, R]:
        """The answers of a run that are complete, by question.

        Args:
            run: its name.
            chunks: the questions that belong together; a chunk with one missing in a file does not count there, and
                is dropped from the file that this process writes.
        """
        answered: dict[int, R] = {}
        own = self._path(run)
        for path in sorted({own, *self.folder.glob(f"{stem(run)}*.jsonl")}):
            content = path.read_text() if path.exists() else ""
            found = {record.question: record for record in self._records(content)}
            whole = {question for chunk in chunks if all(number in found for number in chunk) for question in chunk}
            kept = {question: found[question] for question in found if question in whole}
            if path == own and content != (expected := "".join(map(line, kept.values()))):
                _write(path, expected)
            answered |= kept
        return answered

    def append(self, run: str, records: Sequence[R]) -> None:
        """Write a whole chunk."""
        with self._path(run).open("a") as file:
            file.write("".join(map(line, records)))

    def _path(self, run: str) -> Path:
        return self.folder / f"{stem(run)}{f'.part{self.part}' if self.part else ''}.jsonl"

    def _records(self, content: str) -> list[R]:
        """The records of a file; a last line that was cut off is left out."""
        found: list[dict[str, Any]] = [json.loads(text) for text in content.split("\n")[:-1]]
        return [self.kind(**{key: _frozen(value) for key, value in fields.items()}) for fields in found]


def stem(run: str) -> str:
    """A file name that no other run has."""
    words = re.sub(r"[^a-z0-9.+=-]+", "_", run)[:60].strip("_")
    return f"{words}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def line(record: Any) -> str:
    """A dataclass as a line of JSON."""
    return json.dumps(asdict(record)) + "\n"


def _write(path: Path, content: str) -> None:
    """Write a file whole, also beside other processes that do the same."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    draft.write_text(content)
    draft.replace(path)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
