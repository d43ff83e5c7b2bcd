"""The one place that opens pictures, for every command and the API.

What is returned is what a viewer shows, as RGB with 8 bits: upright by the EXIF orientation, 16-bit and float grey
scaled, transparent parts over a background, the first frame of an animation.
"""

import base64
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from feathervlm.core.errors import PruningError
from feathervlm.utils.files import brief, read_bytes
from feathervlm.utils.text import printable

BACKGROUND = "white"
"""Colour under transparent parts."""
NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
"""Formats that Pillow only identifies, or opens with another program."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of each EXIF orientation upright; `ImageOps.exif_transpose` also rewrites the EXIF data, which
fails where they are damaged."""
FRAMED = ("AVIF", "DCX", "FLI", "GIF", "PNG", "TIFF", "WEBP")
"""Formats of which a viewer shows further frames or pages; those of a PSD are layers, and of an MPO previews."""
PNG_MAY_TURN = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Marks of PNG files that may say that the picture is to be turned; Pillow decodes the whole file to find out."""
GREY = (1.0, 255.0, 65535.0)
"""Values of white in grey pictures of floats; the smallest one that is not exceeded is used."""

RATIO = 1000
"""Largest ratio of the sides of a picture."""

Size = tuple[int, int]


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of the formats that can be opened, with those of Pillow's plug-ins."""
    return tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats()))


def formats() -> list[str]:
    """Return the names of the formats that can be opened."""
    Image.init()
    return [name for name in Image.ID if name not in NOT_READ]


def check_background(colour: str) -> tuple[int, int, int]:
    """Return a colour as numbers.

    Raises:
        PruningError: Pillow does not know the colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(colour)[:3]
    except (ValueError, AttributeError):
        raise PruningError(f"{colour!r} is not a colour; give one such as white, black or #a0b0c0.") from None
    return red, green, blue


def open_picture(path: Path | str, *, background: str = BACKGROUND, upright: bool = True) -> Image.Image:
    """Open the picture of a file as RGB.

    Args:
        path: The file.
        background: Colour under transparent parts, as Pillow reads it.
        upright: Whether the EXIF orientation turns the picture.

    Raises:
        PruningError: The file is missing, is not a picture that can be read, or has too many pixels.
    """
    path = Path(path)
    content = read_bytes(path, "give the file of a picture", "image file")
    return decode(content, printable(path), background=background, upright=upright)


def decode(
    content: bytes, name: str = "The picture", *, background: str = BACKGROUND, upright: bool = True
) -> Image.Image:
    """Return the picture in the bytes of a file as RGB, see `open_picture`; `name` names it in messages."""
    return _opened(content, name, lambda picture: _whole(picture, name, background, upright))


def measure(content: bytes, name: str, *, upright: bool = True) -> Size:
    """Return (width, height) of the picture in the bytes of a file, which are decoded only if that is necessary.

    Raises:
        PruningError: The bytes are not those of a picture that can be read, or it has too many pixels.
    """

    def size(picture: Image.Image) -> Size:
        silent = picture.format == "PNG" and not any(mark in content for mark in PNG_MAY_TURN)
        if silent or not upright or _orientation(picture) == 1:
            return picture.size
        # Pillow turns some formats by itself.
        return _whole(picture, name, BACKGROUND, upright).size

    return _opened(content, name, size)


def as_rgb(picture: Any, *, background: str = BACKGROUND, upright: bool = True) -> Image.Image:
    """Return a PIL image, or the picture of a file, as RGB, see `open_picture`.

    Raises:
        PruningError: It is neither, has no pixels, or its values have no known range.
    """
    if isinstance(picture, str | Path):
        return open_picture(picture, background=background, upright=upright)
    if not isinstance(picture, Image.Image):
        raise PruningError(f"{type(picture).__name__} is not a picture; give a PIL image or a file.")
    name = printable(getattr(picture, "filename", "") or "The picture")
    return _guarded(name, b"", lambda: _whole(picture, name, background, upright))


def _opened(content: bytes, name: str, read: Callable[[Image.Image], Any]) -> Any:
    def opened() -> Any:
        with Image.open(BytesIO(content), formats=formats()) as picture:
            return read(picture)

    return _guarded(name, content, opened)


def _guarded(name: str, content: bytes, read: Callable[[], Any]) -> Any:
    """Return what `read` returns; whatever Pillow raises becomes one sentence."""
    try:
        return read()
    except PruningError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise PruningError(
            f"{name} has more than {limit:.0f} million pixels, which is the limit; scale it down."
        ) from None
    except MemoryError:
        raise PruningError(f"{name} does not fit into memory; scale it down.") from None
    except Exception as error:  # Pillow's readers raise what their parsing of damaged bytes runs into
        raise PruningError(_damage(name, content, error)) from error


def _damage(name: str, content: bytes, error: Exception) -> str:
    """Return the sentence for bytes that Pillow cannot read."""
    kind = next((kind for kind in formats() if _claims(kind, content[:16])), None)
    why, remedy = brief(error), "copy it again from where it is whole, or save it again"
    if not content:
        why = "it is empty" if isinstance(error, UnidentifiedImageError) else why
    elif kind == "PNG" and "text" in why.lower():
        why, remedy = f"it is a PNG file with too much text in it: {why}", "save it without its metadata"
    elif kind is not None:
        why = f"it is a damaged {kind} file" + ("" if isinstance(error, UnidentifiedImageError) else f": {why}")
    elif isinstance(error, UnidentifiedImageError):
        heic = content[4:8] == b"ftyp"
        why = "Pillow does not read its format, such as HEIC" if heic else "its format is not known"
        remedy = "save it as PNG, JPEG, WebP or TIFF"
    return f"{name} cannot be read as an image ({why}); {remedy}."


def _claims(kind: str, prefix: bytes) -> bool:
    accept = Image.OPEN[kind][1]
    try:
        return accept is not None and accept(prefix) is True
    except Exception:  # some of them index into a prefix that is too short
        return False


def _whole(picture: Image.Image, name: str, background: str, upright: bool) -> Image.Image:
    colour = check_background(background)
    if not min(picture.size):
        raise PruningError(f"{name} has {picture.width} x {picture.height} pixels; give a picture that is not empty.")
    if max(picture.size) > RATIO * min(picture.size):
        raise PruningError(
            f"{name} has {picture.width} x {picture.height} pixels, and a side may be at most {RATIO} times the other, "
            "because many processors enlarge the shorter one; cut it."
        )
    frames = getattr(picture, "n_frames", 1) if picture.format in FRAMED else 1
    if frames > 1:
        warnings.warn(f"feathervlm reads the first of the {frames} frames of {name}.", stacklevel=6)
    picture.load()
    method = TURNS.get(_orientation(picture)) if upright else None
    flat = _flat(picture, name, colour)
    result = flat.transpose(method) if method is not None else flat
    result.info = {}  # so that no one turns it a second time
    return result


def _orientation(picture: Image.Image) -> Any:
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data say nothing, as in viewers
        return 1
    return found if isinstance(found, int) else 1


def _flat(picture: Image.Image, name: str, colour: tuple[int, int, int]) -> Image.Image:
    """Return a picture as RGB, scaled and without transparency; always a new image."""
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        picture = _scaled(picture, name)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    key = picture.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, of which Pillow keeps the upper eight
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    if picture.mode == "La":
        picture = picture.convert("LA")
    canvas = Image.new("RGBA", picture.size, colour)
    return Image.alpha_composite(canvas, picture.convert("RGBA")).convert("RGB")


def _scaled(picture: Image.Image, name: str) -> Image.Image:
    """Return a grey picture of 16 bits, of larger integers or of floats with 8 bits."""
    values = np.asarray(picture).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    tags: Any = getattr(picture, "tag_v2", {})
    if picture.mode == "F":
        white = next((one for one in GREY if high <= one), 0.0)
    else:
        bits = tags.get(258, (16,))[0]
        white = 2.0**bits - 1 if bits < 16 else 65535.0
    if not (low >= 0 and high <= white):  # written so that NaN fails
        raise PruningError(
            f"The values of {name} run from {low:g} to {high:g}, and it is not known which of them is white; save it "
            "with 8 or 16 bits."
        )
    if picture.mode == "F":
        warnings.warn(f"feathervlm reads {name} as grey from 0 to {white:g}.", stacklevel=8)
    if picture.mode.startswith("I;16") and tags.get(262) == 0:
        values = white - values  # in TIFF, 0 may be white
    grey = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    key = picture.info.get("transparency")
    if key is None:
        return grey
    grey.putalpha(Image.fromarray(np.where(np.asarray(picture) == key, 0, 255).astype(np.uint8)))
    return grey


def opened_part(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a chat message with its picture opened, if it is one in memory or in a local file.

    What transformers fetches from the web, and what is no PIL image, stays as it is.

    Raises:
        PruningError: The picture cannot be read.
    """
    key = next((key for key in ("image", "path", "url", "base64") if part.get(key) is not None), None)
    if part.get("type") != "image" or key is None:
        return part
    source, more = part[key], {name: value for name, value in part.items() if name != key}
    text = str(source) if isinstance(source, str | Path) else ""
    if text.startswith(("http://", "https://")) or not isinstance(source, str | Path | Image.Image):
        return part
    if key == "base64" or text.startswith("data:image/"):
        name = "The picture in base64"
        return more | {"image": _guarded(name, b"", lambda: decode(base64.b64decode(text.rpartition(",")[2]), name))}
    return more | {"image": open_picture(text.removeprefix("file://")) if text else as_rgb(source)}
