"""Stored answers: one file of JSON lines per set of questions and method, written as the answers come.

Questions are answered in chunks, and the lines of a chunk are written at once. A chunk that is incomplete after a kill
is asked again, so that no answer is lost or counted twice. Several processes may share a folder: each writes to files
of its own and reads all files. The name of a file holds the hash of everything that its answers depend on.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import get
from feathervlm.utils import files
from feathervlm.utils.schema import problems
from feathervlm.utils.text import printable

_SAMPLE = TypeAdapter(Sample)


class AnswerStore:
    """The answers to sets of questions under methods, in a folder.

    Args:
        folder: Directory of the files; it is made with the first answer.
        key: What the answers depend on besides questions and method: model, protocol, settings. A folder with another
            key is refused.
        begun: What else to note at the time of the first answer.
        part: Index of this process among those that write to the folder.
        holds: What the folder holds, for the message about another key.

    Raises:
        PruningError: The folder holds answers with another key.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        begun: Mapping[str, Any] | None = None,
        *,
        part: int = 0,
        holds: str = "a study",
    ) -> None:
        self.folder, self.part, self._noted = folder, part, dict(begun or {})
        self._sets: dict[str, Any] = {}
        self._key = json.dumps(key, indent=1, sort_keys=True) + "\n"
        own, present = json.loads(self._key), self._document("key.json")
        if present is not None and present != own:
            changed = ", ".join(sorted(name for name in {*own, *present} if own.get(name) != present.get(name)))
            raise PruningError(
                f"{printable(folder.parent)} holds {holds} of something else ({changed}); give another --out, or "
                "delete that one."
            )
        if present is None and (folder / "key.json").exists():
            self._begin()

    @cached_property
    def begun(self) -> dict[str, Any]:
        """What was noted at the time of the first answer."""
        return self._document("begun.json") or self._noted

    def note(self, sets: Sequence[QuestionSet]) -> None:
        """Say which sets have other questions or pictures than those that were asked before, and note what is now."""
        before, now = self._document("sets.json") or {}, {one.name: one.fingerprints for one in sets}
        for name, own in now.items():
            other = before.get(name, own)
            what = next((key for key in own if not isinstance(other, dict) or other.get(key) != own[key]), None)
            if what is not None:
                warnings.warn(
                    f"feathervlm: the {what} of {name} have changed since the previous run in "
                    f"{printable(self.folder.parent)}, whose answers to them are not used.",
                    stacklevel=3,
                )
        self._sets = before | now

    def read(self, questions: QuestionSet, method: str) -> dict[int, Sample]:
        """Return the complete chunks of answers to a set of questions under a method, by index of the question.

        An incomplete chunk does not count, and is dropped from the file that this process writes. A line that is not
        an answer is said.
        """
        answered: dict[int, Sample] = {}
        own = self._path(questions, method)
        for path in sorted({own, *self.folder.glob(f"{run_name(questions, method, self._key)}*.jsonl")}):
            content = files.read_bytes(path, "delete it") if path.exists() else b""
            samples = {
                sample.question: sample for sample in _samples(path, content, len(questions.questions), path == own)
            }
            complete = [chunk for chunk in questions.chunks if all(number in samples for number in chunk)]
            whole = {number for chunk in complete for number in chunk}
            kept = {number: sample for number, sample in samples.items() if number in whole}
            if path == own and content != (expected := "".join(map(line, kept.values())).encode()):
                files.write_text(path, expected.decode())
            answered |= kept
        return answered

    def append(self, questions: QuestionSet, method: str, samples: Sequence[Sample]) -> None:
        """Write the answers to a whole chunk, or nothing.

        Raises:
            PruningError: They cannot be written.
        """
        self._begin()
        path, content = self._path(questions, method), memoryview("".join(map(line, samples)).encode())
        try:
            with path.open("ab", buffering=0) as file:
                size = file.seek(0, 2)
                try:
                    while content:
                        content = content[file.write(content) :]
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise files.unwritable(path, error) from error

    def _begin(self) -> None:
        """Make the folder, and note what its answers depend on."""
        files.make_directory(self.folder)
        for name, text in (("begun.json", json.dumps(self._noted) + "\n"), ("key.json", self._key)):
            if self._document(name) is None:
                files.write_text(self.folder / name, text)
        if self._sets:
            files.write_json(self.folder / "sets.json", self._sets)
            self._sets = {}

    def _document(self, name: str) -> dict[str, Any] | None:
        """Return what a file of the folder notes; None if it is missing, and if it is torn, which is said."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = files.read_json(path, "it is written again, and no answer is lost", dict)
            return found
        except PruningError as error:
            warnings.warn(f"feathervlm: {error}", stacklevel=3)
            return None

    def _path(self, questions: QuestionSet, method: str) -> Path:
        part = f".part{self.part}" if self.part else ""
        return self.folder / f"{run_name(questions, method, self._key)}{part}.jsonl"


def run_name(questions: QuestionSet, method: str, key: str = "") -> str:
    """Return a file name for the answers to exactly these questions under exactly this method and key."""
    # A method of the same name may have changed, in a file or with its package.
    changes = () if method == UNPRUNED else (get(method).fingerprint(),)
    return stem(f"{questions.name} {questions.fingerprint[:8]} {method}", questions.fingerprint, key, *changes)


def stem(name: str, *more: str) -> str:
    """Return a file name that starts with the words of a name and that no other name, or `more`, has."""
    words = re.sub(r"[^a-z0-9.+=-]+", "_", name)[:60].strip("_")
    return f"{words}-{hashlib.sha256(' '.join((name, *more)).encode()).hexdigest()[:8]}"


def line(sample: Sample) -> str:
    """Return a sample as a line of JSON."""
    return json.dumps(sample.to_dict()) + "\n"


def _samples(path: Path, content: bytes, count: int, own: bool) -> list[Sample]:
    """Return the answers to `count` questions in a file, and say which lines are none.

    The last line of another process may still be written.
    """
    found, lines = [], content.split(b"\n")
    torn = lines.pop()
    for number, text in enumerate([*lines, torn] if own and torn else lines, 1):
        try:
            sample = _SAMPLE.validate_json(text, strict=True)
            if number > len(lines) or not 0 <= sample.question < count:
                raise ValueError("it is cut off, or of a question that is not asked")
            found.append(sample)
        except ValueError as error:
            why = problems(error)[0] if isinstance(error, ValidationError) else str(error)
            why = "it is blank" if not text.strip() else "it holds null characters" if b"\0" in text else why
            warnings.warn(
                f"feathervlm drops line {number} of {printable(path)}, which is not an answer ({why}); the other lines "
                "are kept, and its chunk of questions is asked again.",
                stacklevel=4,
            )
    return found
