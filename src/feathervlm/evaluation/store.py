"""Stored answers: one file of JSON lines per set of questions and method, written as the answers come.

Questions are answered in chunks, and the lines of a chunk are written at once. A chunk that is incomplete after a kill
is asked again, so that no answer is lost or counted twice. Several processes may share a folder: each writes to files
of its own and reads all files.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.tasks.base import QuestionSet
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import get


class AnswerStore:
    """The answers to sets of questions under methods, in a folder.

    Args:
        folder: Directory of the files; it is made if there is none.
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
        self.folder, self.part = folder, part
        folder.mkdir(parents=True, exist_ok=True)
        path, own = folder / "key.json", json.dumps(key, indent=1, sort_keys=True) + "\n"
        if not path.exists():
            _write(folder / "begun.json", json.dumps(begun or {}) + "\n")
            _write(path, own)
        elif (present := path.read_text()) != own:
            changed = ", ".join(_differences(json.loads(present), json.loads(own)))
            raise PruningError(
                f"{folder.parent} holds {holds} of something else ({changed}); give another --out, or delete that one."
            )

    @property
    def begun(self) -> dict[str, Any]:
        """What was noted at the time of the first answer."""
        noted: dict[str, Any] = json.loads((self.folder / "begun.json").read_text())
        return noted

    def read(self, questions: QuestionSet, method: str) -> dict[int, Sample]:
        """Return the complete chunks of answers to a set of questions under a method, by index of the question.

        An incomplete chunk does not count, and is dropped from the file that this process writes.
        """
        answered: dict[int, Sample] = {}
        own = self._path(questions, method)
        for path in sorted({own, *self.folder.glob(f"{run_name(questions, method)}*.jsonl")}):
            content = path.read_text() if path.exists() else ""
            samples = {sample.question: sample for sample in _samples(content)}
            complete = [chunk for chunk in questions.chunks if all(number in samples for number in chunk)]
            whole = {number for chunk in complete for number in chunk}
            kept = {number: sample for number, sample in samples.items() if number in whole}
            if path == own and content != (expected := "".join(map(line, kept.values()))):
                _write(path, expected)
            answered |= kept
        return answered

    def append(self, questions: QuestionSet, method: str, samples: Sequence[Sample]) -> None:
        """Write the answers to a whole chunk."""
        with self._path(questions, method).open("a") as file:
            file.write("".join(map(line, samples)))

    def _path(self, questions: QuestionSet, method: str) -> Path:
        part = f".part{self.part}" if self.part else ""
        return self.folder / f"{run_name(questions, method)}{part}.jsonl"


def run_name(questions: QuestionSet, method: str) -> str:
    """Return a file name for the answers to exactly these questions under exactly this method."""
    # A method of the same name may have changed, in a file or with its package.
    changes = () if method == UNPRUNED else (get(method).fingerprint(),)
    return stem(f"{questions.name} {questions.fingerprint[:8]} {method}", *changes)


def stem(name: str, *more: str) -> str:
    """Return a file name that starts with the words of a name and that no other name, or `more`, has."""
    words = re.sub(r"[^a-z0-9.+=-]+", "_", name)[:60].strip("_")
    return f"{words}-{hashlib.sha256(' '.join((name, *more)).encode()).hexdigest()[:8]}"


def line(sample: Sample) -> str:
    """Return a sample as a line of JSON."""
    return json.dumps(sample.to_dict()) + "\n"


def _samples(content: str) -> list[Sample]:
    """Return the samples of a file without an incomplete last line."""
    return [Sample.of(json.loads(text)) for text in content.split("\n")[:-1]]


def _write(path: Path, content: str) -> None:
    """Write a file whole, also while other processes do the same."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    draft.write_text(content)
    draft.replace(path)


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
