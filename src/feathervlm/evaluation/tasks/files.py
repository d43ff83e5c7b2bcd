"""Files below a data directory, as their publishers wrote them, with messages for missing and broken ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from feathervlm.core.errors import PruningError


class LocalFiles:
    """Files of one data set.

    Class attributes:
        title: Name of the data set in tables.
        fetch: What to get and where to put it, one sentence without its full stop.

    Args:
        data: Directory in which paths begin.
    """

    title: str
    fetch: ClassVar[str] = ""

    def __init__(self, data: Path) -> None:
        self.data = data

    def picture(self, name: str) -> Image.Image:
        """Open a picture as RGB, as it is stored; EXIF data do not turn it, as in the harness of the paper.

        Raises:
            PruningError: The picture cannot be opened.
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
        """Return the error for a file that is not there."""
        return PruningError(f"{self.title} needs {path}, which is not there: {self.fetch}.")

    def json(self, name: str) -> Any:
        """Return the document in a JSON file below the data directory.

        Raises:
            PruningError: The file is missing or broken.
        """
        content = self.text(name)
        try:
            return json.loads(content)
        except ValueError as error:
            raise PruningError(f"{self.data / name} is no valid JSON ({error}); get it again.") from None

    def json_lines(self, name: str) -> Iterator[Any]:
        """Yield the documents in a file of JSON lines below the data directory.

        Raises:
            PruningError: The file is missing or broken.
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
        """Return the text of a file below the data directory.

        Raises:
            PruningError: The file is missing or broken.
        """
        try:
            return (self.data / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise self.missing(self.data / name) from None
        except (OSError, UnicodeDecodeError) as error:
            raise PruningError(f"{self.data / name} cannot be read ({error}); get it again.") from None
