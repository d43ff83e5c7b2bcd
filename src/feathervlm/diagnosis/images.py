"""The pictures of a diagnosis: files of a directory, pictures in memory, or drawn scenes; opened when they are needed.

Knows nothing of models.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from feathervlm.core.errors import PruningError
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.inference import prompts

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Source = tuple[str, Callable[[], Image.Image]]
"""A picture's name, and what opens it."""


def gallery(
    images: Path | str | Sequence[Image.Image] | None, limit: int, seed: int = 0, *, drawn: bool = True
) -> Iterator[Source]:
    """The pictures, in the order of their names if they are files.

    Args:
        images: a directory, or pictures; None draws scenes.
        limit: pictures at most.
        seed: of the scenes.
        drawn: whether scenes may be drawn.

    Raises:
        PruningError: if there is no picture, or no such directory.
    """
    if limit < 1:
        raise PruningError(f"limit={limit} asks for no picture; give 1 or more.")
    if images is None:
        if not drawn:
            raise PruningError("Only the embedded model draws its own pictures; give a directory of yours (--images).")
        for number in range(limit):
            yield f"scene {number}", partial(_scene, seed, number)
        return
    if not isinstance(images, Path | str):
        if not images:
            raise PruningError("There is no picture in the list; give at least one.")
        for number, picture in enumerate(images[:limit]):
            name = Path(getattr(picture, "filename", "") or f"picture {number}").name
            yield name, partial(_upright, picture)
        return
    folder = Path(images)
    if not folder.is_dir():
        raise PruningError(f"There is no directory {folder}; give one with pictures.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise PruningError(f"There is no picture in {folder}; put some there ({', '.join(SUFFIXES)}).")
    for path in paths[:limit]:
        yield path.name, partial(prompts.open_picture, path)


def _scene(seed: int, number: int) -> Image.Image:
    return sample("background", HELD_OUT + seed, number)[0].image


def _upright(picture: Any) -> Image.Image:
    if not isinstance(picture, Image.Image):
        raise PruningError(f"{type(picture).__name__} is no picture; give PIL images, or the directory of their files.")
    return ImageOps.exif_transpose(picture).convert("RGB")
