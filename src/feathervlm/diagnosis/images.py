"""The pictures of a diagnosis: files of a directory, pictures in memory, or drawn scenes, each opened when needed."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from feathervlm.core.errors import PruningError
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.inference import prompts

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

ImageSource = tuple[str, Callable[[], Image.Image]]
"""The name of a picture, and a function that opens it."""


def image_sources(
    images: Path | str | Sequence[Image.Image] | None, limit: int, seed: int = 0, *, scenes: bool = True
) -> Iterator[ImageSource]:
    """Yield the pictures, files in the order of their names.

    Args:
        images: Directory or pictures; None for drawn scenes.
        limit: Largest number of pictures.
        seed: Seed of the scenes.
        scenes: Whether scenes may be drawn.

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
        raise PruningError(
            f"{type(picture).__name__} is not a picture; give PIL images, or the directory of their files."
        )
    return ImageOps.exif_transpose(picture).convert("RGB")
