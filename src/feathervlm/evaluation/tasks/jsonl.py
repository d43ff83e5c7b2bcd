"""The user's own questions: a file of JSON objects, one per line, about pictures beside it.

Every line is checked before anything runs, and all that the lines and the pictures' heads tell goes into a table, so
that other processes open nothing but the pictures that they ask about. Knows nothing of models.
"""

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image

from feathervlm.core.boxes import Size
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.evaluation.tasks.jsonl_schema import FORMAT, Broken, parse, short
from feathervlm.evaluation.tasks.study_data import Data, Item, Kind
from feathervlm.inference import prompts

TOLD = 5
"""So many broken lines are described; the others are counted."""
ROUNDING = 0.01
"""Pixels by which a box may stick out of its picture: what is left when left + width is computed in floats."""
PNG_MAY_TURN = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Where a PNG file says that it is to be shown turned; Pillow decodes all of it to look."""


@dataclass(frozen=True)
class Row:
    """One question, checked; `image` is an absolute path, `size` that of the upright picture."""

    id: str
    task: str
    prompt: str
    image: str
    size: Size
    box: Box | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class JsonlData(Data):
    """Questions of a file; `JsonlData.read` makes it.

    Args:
        path: the file.
        rows: its questions, in its order.
        sha256: of the file's bytes and of its pictures' sizes and bytes.
    """

    path: Path
    rows: tuple[Row, ...]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "JsonlData":
        """Check a file and all that it names, without decoding a picture.

        Raises:
            PruningError: the file cannot be read or is empty, or lines are broken; it says which, and why.
        """
        content, text = _read(path)
        pictures, seen = Pictures(path.absolute().parent), Seen()
        rows, broken = [], []
        # Not splitlines(), which also splits at characters that JSON allows inside a text.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = _row(number, line, pictures)
                seen.add(number, row)
                rows.append(row)
            except Broken as error:
                broken.append(f"line {number}: {error}")
        if broken:
            more = [f"and {len(broken) - TOLD} more"] if len(broken) > TOLD else []
            raise PruningError(f"{path} has broken lines: {'; '.join(broken[:TOLD] + more)} - mend them: {FORMAT}.")
        if not rows:
            raise PruningError(f"{path} holds no question; {FORMAT}.")
        return cls(path, tuple(rows), hashlib.sha256(content + pictures.digest).hexdigest())

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.name

    @property
    def fingerprint(self) -> str:
        """A hash of the file and the pictures; wherever they are, and whenever they were written."""
        return self.sha256

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Every task, in the order of first questions."""
        return {row.task: "localization" if row.box else "other" for row in self.rows}

    @cached_property
    def _tasks(self) -> list[str]:
        return [row.task for row in self.rows]

    def tasks(self) -> list[str]:
        """In the order of the file."""
        return self._tasks

    def item(self, number: int) -> Item:
        """Open its picture."""
        row = self.rows[number]
        picture = prompts.open_picture(Path(row.image))
        if picture.size != row.size:
            before, now = (f"{width}x{height}" for width, height in (row.size, picture.size))
            raise PruningError(f"{row.image} was {before} when {self.name} was read and is {now} now; start again.")
        return Item(row.id, row.task, row.prompt, picture, row.box, row.answers)


class Seen:
    """What earlier lines said that later ones must not contradict."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.tasks: dict[str, tuple[str, int]] = {}

    def add(self, number: int, row: Row) -> None:
        """Take a line, or raise `Broken`."""
        mine = "box" if row.box else "answers"
        other, first = self.tasks.setdefault(row.task, (mine, number))
        if other != mine:
            raise Broken(
                f"task {short(row.task)} has {mine} here and {other} in line {first}; give them tasks of their own"
            )
        if self.ids.setdefault(row.id, number) != number:
            raise Broken(f"id {short(row.id)} is also that of line {self.ids[row.id]}")


class Pictures:
    """Sizes of pictures and a hash of all of them, each read once.

    Args:
        folder: what relative paths are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, Size | Broken] = {}
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """The hash of all pictures so far, in the order in which they were first named."""
        return self._hash.digest()

    def size(self, path: str) -> Size:
        """Width and height of a picture, upright, or raise `Broken`."""
        if path not in self.known:
            self.known[path] = self._measure(path)
        found = self.known[path]
        if isinstance(found, Broken):
            raise found
        return found

    def _measure(self, name: str) -> Size | Broken:
        path = self.folder / name
        try:
            content = path.read_bytes()
            with Image.open(BytesIO(content)) as picture:
                size = picture.size
                silent = picture.format == "PNG" and not any(mark in content for mark in PNG_MAY_TURN)
                if not silent and picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    # What a turn means differs between file formats: take what questions get to see.
                    size = prompts.open_picture(path).size
        except FileNotFoundError:
            return Broken(f"there is no image {short(name)}")
        except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
            return Broken(f"{short(name)} cannot be read as an image")
        self._hash.update(f"{size[0]}x{size[1]} ".encode() + hashlib.sha256(content).digest())
        return size


def _read(path: Path) -> tuple[bytes, str]:
    """The file's bytes, and what they say."""
    try:
        content = path.read_bytes()
        return content, content.decode("utf-8-sig")
    except FileNotFoundError:
        raise PruningError(f"There is no data file {path}; check the path.") from None
    except IsADirectoryError:
        raise PruningError(f"{path} is a directory; give the JSONL file.") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PruningError(f"{path} is not UTF-8 (line {line}); save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise PruningError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None


def _row(number: int, text: str, pictures: Pictures) -> Row:
    """The question in a line, or raise `Broken`."""
    line = parse(text)
    size = pictures.size(line.image)
    box = None if line.box is None else _box(line.box, size)
    task = line.task or ("localization" if box else "other")
    name = str(number if line.id is None else line.id)
    return Row(name, task, line.prompt, str(pictures.folder / line.image), size, box, line.right)


def _box(given: list[float], size: Size) -> Box:
    left, top, right, bottom = given
    if not (left < right and top < bottom):
        raise Broken(f"box={given} needs left < right and top < bottom")
    if min(left, top) < -ROUNDING or right > size[0] + ROUNDING or bottom > size[1] + ROUNDING:
        raise Broken(f"box={given} sticks out of its picture of {size[0]}x{size[1]} pixels")
    return left, top, right, bottom
