"""Questions of the user: a file of JSON objects, one per line, about pictures beside it.

Every line is checked before anything runs, and the sizes of the pictures are noted, so that other processes open
nothing but the pictures that they ask about.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image

from feathervlm.core.boxes import Size
from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Box
from feathervlm.evaluation.tasks.base import Grade, Question, Reading, Task, first_of_splits
from feathervlm.evaluation.tasks.jsonl_schema import FORMAT, Broken, normal, parse, short
from feathervlm.inference import prompts

DESCRIBED = 5
"""Number of broken lines that are described; the others are counted."""
ROUNDING = 0.01
"""Pixels by which a box may exceed its picture, because left + width is computed in floats."""
PNG_MAY_TURN = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Marks of PNG files that may say that the picture is to be turned; Pillow decodes the whole file to find out."""


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
        self.path, self.name, self.title = path, path.name, path.name
        content, text = _read(path)
        pictures, checks = PictureSizes(self.data), LineChecks()
        self._questions, broken = list[Question](), []
        # splitlines() would also split at characters that JSON allows inside a text.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                question = _question(number, line, pictures)
                checks.add(number, question)
                self._questions.append(question)
            except Broken as error:
                broken.append(f"line {number}: {error}")
        if broken:
            more = [f"and {len(broken) - DESCRIBED} more"] if len(broken) > DESCRIBED else []
            raise PruningError(
                f"{path} has broken lines: {'; '.join(broken[:DESCRIBED] + more)} - mend them: {FORMAT}."
            )
        if not self._questions:
            raise PruningError(f"{path} holds no question; {FORMAT}.")
        self.localizes = any(question.box for question in self._questions)
        self.sizes = pictures.sizes()
        self.sha256 = hashlib.sha256(content + pictures.digest).hexdigest()

    def read(self) -> Iterator[Question]:
        """Yield the questions in the order of the file."""
        yield from self._questions

    def questions(self, limit: int | None) -> list[Question]:
        """Return the questions in the order of the file; a limit takes the first of every split."""
        return list(self._questions) if limit is None else first_of_splits(self._questions, limit)

    def fingerprint(self, questions: Sequence[Question]) -> str:
        """Return a hash of the file, its pictures and which questions are asked; paths and times are not part of it."""
        ids = "\n".join(question.id for question in questions)
        return hashlib.sha256(f"{self.sha256}\n{ids}".encode()).hexdigest()

    def open(self, question: Question) -> Image.Image:
        """Open the picture of a question as RGB, turned upright.

        Raises:
            PruningError: The picture cannot be opened, or changed its size since the file was read.
        """
        picture, size = prompts.open_picture(self.data / question.image), self.sizes[question.image]
        if picture.size != size:
            before, now = (f"{width}x{height}" for width, height in (size, picture.size))
            path = self.data / question.image
            raise PruningError(f"{path} was {before} when {self.name} was read and is {now} now; start again.")
        return picture

    def check(self, questions: Sequence[Question]) -> None:
        """Do nothing: the pictures were found when the file was read."""

    def grade(self, question: Question, answer: str, reading: Reading) -> Grade:
        """Grade by IoU, or by comparison with the right answers without case and final full stop."""
        if question.box is not None:
            return reading.localize(answer, question.box)
        return Grade(float(normal(answer) in map(normal, question.target)))


class LineChecks:
    """Checks that the lines of a file do not contradict each other."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.tasks: dict[str, tuple[str, int]] = {}

    def add(self, number: int, question: Question) -> None:
        """Add the question of a line, or raise `Broken`."""
        target = "box" if question.box else "answers"
        other, first = self.tasks.setdefault(question.split, (target, number))
        if other != target:
            raise Broken(
                f"task {short(question.split)} has {target} here and {other} in line {first}; give them tasks of their "
                "own"
            )
        if self.ids.setdefault(question.id, number) != number:
            raise Broken(f"id {short(question.id)} is also that of line {self.ids[question.id]}")


class PictureSizes:
    """The sizes of pictures and a hash of all of them; each picture is read once.

    Args:
        folder: Directory in which relative paths begin.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, Size | Broken] = {}
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """The hash of all pictures so far, in the order of their first use."""
        return self._hash.digest()

    def sizes(self) -> dict[str, Size]:
        """Return (width, height) of the pictures that could be read, by path."""
        return {path: size for path, size in self.known.items() if not isinstance(size, Broken)}

    def size(self, path: str) -> Size:
        """Return (width, height) of a picture, upright, or raise `Broken`."""
        if path not in self.known:
            self.known[path] = self._measure(path)
        size = self.known[path]
        if isinstance(size, Broken):
            raise size
        return size

    def _measure(self, name: str) -> Size | Broken:
        path = self.folder / name
        try:
            content = path.read_bytes()
            with Image.open(BytesIO(content)) as picture:
                size = picture.size
                silent = picture.format == "PNG" and not any(mark in content for mark in PNG_MAY_TURN)
                if not silent and picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    # The meaning of a turn differs between file formats, so the picture is opened as for a question.
                    size = prompts.open_picture(path).size
        except FileNotFoundError:
            return Broken(f"there is no image {short(name)}")
        except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
            return Broken(f"{short(name)} cannot be read as an image")
        self._hash.update(f"{size[0]}x{size[1]} ".encode() + hashlib.sha256(content).digest())
        return size


def _read(path: Path) -> tuple[bytes, str]:
    """Return the bytes of a file and their text."""
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


def _question(number: int, text: str, pictures: PictureSizes) -> Question:
    """Return the question of a line, or raise `Broken`."""
    line = parse(text)
    size = pictures.size(line.image)
    box = None if line.box is None else _box(line.box, size)
    split = line.task or ("localization" if box else "other")
    name = str(number if line.id is None else line.id)
    return Question(name, line.prompt, line.image, line.right or None, box, split)


def _box(values: list[float], size: Size) -> Box:
    left, top, right, bottom = values
    if not (left < right and top < bottom):
        raise Broken(f"box={values} needs left < right and top < bottom")
    if min(left, top) < -ROUNDING or right > size[0] + ROUNDING or bottom > size[1] + ROUNDING:
        raise Broken(f"box={values} sticks out of its picture of {size[0]}x{size[1]} pixels")
    return left, top, right, bottom
