"""Files below a data directory, as their publishers wrote them, and what to say of one that is missing or broken.

Knows JSON and pictures; knows no task.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from feathervlm.core.errors import PruningError


class LocalFiles:
    """Files of one data set.

    Class attributes:
        title: how tables call the data set.
        fetch: what to get and where to put it, one sentence without its full stop.

    Args:
        data: the directory in which paths begin.
    """

    title: str
    fetch: ClassVar[str] = ""

    def __init__(self, data: Path) -> None:
        self.data = data

    def picture(self, name: str) -> Image.Image:
        """The picture as RGB, as it is stored: EXIF data do not turn it, nor do they in the paper's harness.

        Raises:
            PruningError: if it cannot be opened.
        """
        path = self.data / name
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB")
        except FileNotFoundError:
            raise self.missing(path) from None
        except (OSError, SyntaxError, Image.DecompressionBombError):
            raise PruningError(f"{path} cannot be read as an image; get it again.") from None

    def missing(self, path: Path) -> PruningError:
        """What to say of a file that is not there."""
        return PruningError(f"{self.title} needs {path}, which is not there: {self.fetch}.")

    def json(self, name: str) -> Any:
        """The document in a JSON file below the data directory.

        Raises:
            PruningError: if there is none.
        """
        content = self.text(name)
        try:
            return json.loads(content)
        except ValueError as error:
            raise PruningError(f"{self.data / name} is no valid JSON ({error}); get it again.") from None

    def json_lines(self, name: str) -> Iterator[Any]:
        """The documents in a file of JSON lines below the data directory.

        Raises:
            PruningError: if there is none.
        """
        for number, line in enumerate(self.text(name).split("\n"), 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise PruningError(
                        f"Line {number} of {self.data / name} is no valid JSON ({error}); get it again."
                    ) from None

    def text(self, name: str) -> str:
        """What a file below the data directory says.

        Raises:
            PruningError: if there is none.
        """
        try:
            return (self.data / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise self.missing(self.data / name) from None
        except (OSError, UnicodeDecodeError) as error:
            raise PruningError(f"{self.data / name} cannot be read ({error}); get it again.") from None
