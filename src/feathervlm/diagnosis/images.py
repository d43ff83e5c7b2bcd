"""The pictures of a diagnosis: files of a directory, pictures in memory, or drawn scenes, each opened when needed."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from feathervlm.core.errors import PruningError
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.utils.pictures import BACKGROUND, as_rgb, open_picture, suffixes
from feathervlm.utils.text import printable

NAMED = 3
"""Number of files that are named of all that are not read."""

ImageSource = tuple[str, Callable[[], Image.Image]]
"""The name of a picture, and a function that opens it."""


def image_sources(
    images: Path | str | Sequence[Image.Image] | None,
    limit: int,
    seed: int = 0,
    *,
    scenes: bool = True,
    background: str = BACKGROUND,
) -> Iterator[ImageSource]:
    """Yield the pictures, files in the order of their names.

    Args:
        images: Directory or pictures; None for drawn scenes.
        limit: Largest number of pictures.
        seed: Seed of the scenes.
        scenes: Whether scenes may be drawn.
        background: Colour under transparent parts.

    Raises:
        PruningError: There is no picture, or no such directory.
    """
    if limit < 1:
        raise PruningError(f"limit={limit} asks for no picture; give 1 or more.")
    if images is None:
        if not scenes:
            raise PruningError("Only the embedded model draws its own pictures; give a directory of yours (--images).")
        for number in range(limit):
            yield f"scene {number}", partial(_scene, seed, number)
        return
    if not isinstance(images, Path | str):
        if not images:
            raise PruningError("There is no picture in the list; give at least one.")
        for number, picture in enumerate(images[:limit]):
            name = Path(getattr(picture, "filename", "") or f"picture {number}").name
            yield printable(name), partial(_in_memory, picture, background)
        return
    folder = Path(images)
    if not folder.is_dir():
        raise PruningError(f"There is no directory {printable(folder)}; give one with pictures.")
    paths, others = _files(folder)
    if not paths:
        held = f", which holds {', '.join(others[:NAMED])}" if others else ""
        raise PruningError(
            f"There is no picture in {printable(folder)}{held}; put some there, such as PNG or JPEG files."
        )
    for path in paths[:limit]:
        yield printable(path.name), partial(open_picture, path, background=background)


def passed_over(images: Path | str | Sequence[Image.Image] | None) -> list[str]:
    """Return a sentence about the files of a directory that are not read, if there are any."""
    others = _files(Path(images))[1] if isinstance(images, Path | str) else []
    if not others:
        return []
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return [
        f"{', '.join(others[:NAMED])}{more} in {printable(images)} were passed over, because their names do not end "
        "like those of pictures that can be read; save pictures among them as PNG or JPEG"
    ]


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the pictures of a directory, and the names of its other files."""
    known = suffixes()
    present = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    paths = [path for path in present if path.suffix.lower() in known]
    return paths, [printable(path.name) for path in present if path.suffix.lower() not in known]


def _in_memory(picture: Any, background: str) -> Image.Image:
    if not isinstance(picture, Image.Image):
        raise PruningError(
            f"{type(picture).__name__} is not a picture; give PIL images, or the directory of their files."
        )
    return as_rgb(picture, background=background)


def _scene(seed: int, number: int) -> Image.Image:
    return sample("background", HELD_OUT + seed, number)[0].image
