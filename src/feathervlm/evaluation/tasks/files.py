"""Files below a data directory, as their publishers wrote them, with messages for missing and broken ones."""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from pydantic import TypeAdapter, ValidationError

from feathervlm.core.boxes import Size
from feathervlm.core.errors import PruningError
from feathervlm.utils import files, pictures
from feathervlm.utils.schema import listed, problems
from feathervlm.utils.text import printable


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture without decoding it: (width, height) as it is shown, and the hash of its bytes."""

    size: Size
    sha256: str


class LocalFiles:
    """Files of one data set.

    Class attributes:
        title: Name of the data set in tables.
        fetch: What to get and where to put it, one sentence without its full stop.

    Args:
        data: Directory in which paths begin.

    Attributes:
        background: Colour under transparent parts of pictures.
    """

    title: str
    fetch: ClassVar[str] = "check the path"

    def __init__(self, data: Path) -> None:
        self.data, self.background = data, pictures.BACKGROUND
        self._facts: dict[str, PictureFacts] = {}

    def facts(self, name: str, *, upright: bool) -> PictureFacts:
        """Return size and hash of a picture, whose file is read once.

        Raises:
            PruningError: The picture cannot be read.
        """
        if name not in self._facts:
            content = self.content(name)
            size = pictures.measure(content, printable(self.data / name), upright=upright)
            self._facts[name] = PictureFacts(size, hashlib.sha256(content).hexdigest())
        return self._facts[name]

    def picture(self, name: str, *, upright: bool) -> Image.Image:
        """Open a picture as RGB.

        Args:
            name: Path of the picture.
            upright: Whether EXIF data turn it.

        Raises:
            PruningError: The picture cannot be opened, or has changed since its facts were read.
        """
        content, title = self.content(name), printable(self.data / name)
        known = self._facts.get(name)
        if known is not None and known.sha256 != hashlib.sha256(content).hexdigest():
            raise PruningError(f"{title} has changed since this command began; run the same command again.")
        return pictures.decode(content, title, background=self.background, upright=upright)

    def missing(self, path: Path) -> PruningError:
        """Return the error for a file that is not there."""
        return PruningError(f"{self.title} needs {printable(path)}, which is not there: {self.fetch}.")

    def rows(self, name: str, kind: Any) -> Any:
        """Return the document in a JSON file below the data directory.

        Args:
            name: Path of the file.
            kind: What the file holds, a type of `schema.AnnotationRow`.

        Raises:
            PruningError: The file is missing, or a value does not have the type of its field.
        """
        try:
            return _adapter(kind).validate_json(self.text(name))
        except ValidationError as error:
            raise self.broken(name, problems(error)) from None

    def lines(self, name: str, kind: Any) -> list[Any]:
        """Return the documents in a file of JSON lines below the data directory, see `rows`."""
        found, wrong = [], []
        for number, line in enumerate(self.text(name).split("\n"), 1):
            if line.strip():
                try:
                    found.append(_adapter(kind).validate_json(line))
                except ValidationError as error:
                    wrong.append(f"line {number}: {', '.join(problems(error))}")
        if wrong:
            raise self.broken(name, wrong)
        return found

    def broken(self, name: str, found: list[str]) -> PruningError:
        """Return the error for a file whose content does not fit."""
        path = printable(self.data / name)
        return PruningError(f"{path} is not written as it should be: {listed(found)}; {self.fetch}.")

    def text(self, name: str) -> str:
        """Return the text of a file below the data directory, see `content`."""
        return files.decoded(self.content(name), self.data / name)

    def content(self, name: str) -> bytes:
        """Return the bytes of a file below the data directory.

        Raises:
            PruningError: The file is missing or cannot be read.
        """
        path = self.data / name
        if not os.path.exists(path):
            raise self.missing(path)
        return files.read_bytes(path, self.fetch)


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    return TypeAdapter(kind)
