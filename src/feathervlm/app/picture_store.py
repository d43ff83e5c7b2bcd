"""The pictures of a page: those that visitors give, kept in a temporary folder, and example scenes."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from feathervlm.core.errors import PruningError
from feathervlm.embedded.questions import SceneQuestion
from feathervlm.embedded.tasks import HELD_OUT, TASKS, sample
from feathervlm.utils import files, pictures
from feathervlm.utils.text import printable

MEGABYTES, MEGAPIXELS = 50, 40
"""Limits of the file and of the picture in it."""
STORED = 100
"""Number of pictures that are kept; the oldest leaves first."""
EXAMPLES = ("locate-6", "relation-0", "reading-0", "counting-0", "existence-0", "background-0")
"""Keys of the example scenes, held-out questions of the embedded model: that of README, the first of other tasks."""
SCENE = re.compile(rf"({'|'.join(TASKS)})-(\d{{1,4}})")


@dataclass(frozen=True, eq=False)
class StoredPicture:
    """A picture that can be asked about.

    Attributes:
        key: Key in links.
        name: Name of its file; that of a scene is made up.
        picture: The picture as models are shown it.
        question: Question about an example scene, with its right answer; None for other pictures.
    """

    key: str
    name: str
    picture: Image.Image
    question: SceneQuestion | None = None


class PictureStore:
    """Keeps pictures by their content, as the files that they came in.

    Args:
        folder: Directory for them, which the caller removes.
        background: Colour under transparent parts.
    """

    def __init__(self, folder: Path, background: str = pictures.BACKGROUND) -> None:
        self.folder, self.background = folder, background
        self._names: dict[str, str] = {}

    def add(self, path: Path, name: str = "") -> StoredPicture:
        """Check a file and keep a copy of it.

        Args:
            path: The file.
            name: Name that the visitor knows it by; default that of the file.

        Raises:
            PruningError: It is not a picture that can be read, or is too large.
        """
        name = re.sub(r"[^\w.() -]", "_", printable(Path(name or path.name).name)) or "picture"
        content = files.read_bytes(path, "give the file of a picture", "image file")
        if len(content) > MEGABYTES << 20:
            raise PruningError(
                f"{name} has {len(content) / (1 << 20):.0f} MB, and {MEGABYTES} MB is the limit of this page; "
                "scale it down."
            )
        check_size(pictures.measure(content, name), name)
        picture = pictures.decode(content, name, background=self.background)
        key = hashlib.sha256(content).hexdigest()[:24]
        (self.folder / key).write_bytes(content)
        self._names.pop(key, None)
        self._names[key] = name
        while len(self._names) > STORED:
            oldest = next(iter(self._names))
            del self._names[oldest]
            (self.folder / oldest).unlink(missing_ok=True)
        return StoredPicture(key, name, picture)

    def get(self, key: str) -> StoredPicture:
        """Return the picture of a key.

        Raises:
            PruningError: There is none.
        """
        if not key:
            raise PruningError("There is no picture; upload one, paste one, or choose an example.")
        scene = SCENE.fullmatch(key)
        if scene:
            drawn, question = sample(scene[1], HELD_OUT, int(scene[2]))
            return StoredPicture(key, f"{key}.png", drawn.image, question)
        name = self._names.get(key)
        if name is None:
            raise PruningError("The picture of this link is not on this page any more; upload it again.")
        content = files.read_bytes(self.folder / key, "upload the picture again")
        return StoredPicture(key, name, pictures.decode(content, name, background=self.background))


def check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a picture with too many pixels.

    Raises:
        PruningError: It has more than the limit.
    """
    width, height = size
    if width * height > MEGAPIXELS * 10**6:
        raise PruningError(
            f"{name} has {width} x {height} pixels, and {MEGAPIXELS} million pixels is the limit of this page; "
            "scale it down."
        )
