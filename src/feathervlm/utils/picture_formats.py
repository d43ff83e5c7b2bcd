"""The formats that pictures are written in, with the mark by which results are known."""

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from feathervlm.core.errors import PruningError
from feathervlm.utils.files import MARK, brief
from feathervlm.utils.text import printable


def write(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format that the suffix names, with the mark by which results are known."""
    kind = kind_of(path)
    picture.save(path, kind, **marked(kind))


def check_suffix(path: Path, option: str) -> None:
    """Refuse a path whose suffix names no format that pictures can be written in.

    Raises:
        PruningError: There is no such format, or it takes no RGB.
    """
    try:
        kind = kind_of(path)
        Image.new("RGB", (8, 8)).save(BytesIO(), kind, **marked(kind))
    except Exception as error:
        why = "does not end like a picture" if isinstance(error, KeyError) else f"cannot be written ({brief(error)})"
        raise PruningError(f"{option} {printable(path)} {why}; give a name such as kept.png.") from None


def kind_of(path: Path) -> str:
    """Return the format that the suffix of a path names.

    Raises:
        KeyError: There is no such format.
    """
    return Image.registered_extensions()[path.suffix.lower()]


def marked(kind: str) -> dict[str, Any]:
    """Return the options that put the mark into a file of a format; empty for formats without a place for it."""
    if kind == "PNG":
        info = PngInfo()
        info.add_text("Software", MARK)
        return {"pnginfo": info}
    if kind in ("JPEG", "WEBP", "TIFF", "AVIF"):
        exif = Image.Exif()
        exif[ExifTags.Base.Software] = MARK
        return {"exif": exif}
    return {"comment": MARK} if kind in ("GIF", "JPEG2000") else {"producer": MARK} if kind == "PDF" else {}
