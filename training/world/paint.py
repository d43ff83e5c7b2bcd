"""Paints backgrounds, textures, leaves and digits into a canvas of float32 values, of shape (3, side, side).

Noise is value noise: random grids of several frequencies, interpolated linearly and summed with weights that fall with
the frequency. Neither FFT nor matrix products nor functions of libm are used, so that every machine paints the same.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from training.world.shapes import Mask, leaf_mask

TONES = {"sky": (125, 150, 185), "grass": (98, 125, 80), "bricks": (150, 100, 82), "tiles": (150, 146, 138)}
LEAF_COLOURS = np.array(
    [(165, 130, 95), (118, 115, 50), (90, 110, 110), (215, 196, 165), (75, 60, 60), (180, 190, 180), (60, 80, 60),
     (150, 120, 130)], np.float32
)  # fmt: skip
LARGEST_LEAF = 9
"""Largest span of a leaf in pixels. Leaves are texture and have no names, so they are smaller than things."""
# The digits 0 to 9 in 5 x 7 pixels, row by row, one hexadecimal pair per row.
_GLYPHS = (
    "0e11131519110e 040c040404040e 0e11010204081f 1f02040201110e 02060a121f0202 "
    "1f101e0101110e 0608101e11110e 1f010204080808 0e11110e11110e 0e11110f01020c"
)
DIGITS = [
    np.array([[row >> bit & 1 for bit in (4, 3, 2, 1, 0)] for row in bytes.fromhex(code)], bool)
    for code in _GLYPHS.split()
]
OCTAVES = ((2, 1.0), (4, 0.7), (8, 0.5), (16, 0.35), (32, 0.25), (64, 0.18), (96, 0.15))
"""Cells per side and weight of the grids of luminance."""
CHROMA = ((3, 1.0), (9, 0.46), (27, 0.21))
LIGHT = ((3, 1.0),)

Canvas = NDArray[np.float32]


@cache
def _steps(side: int, cells: int) -> tuple[NDArray[np.intp], Canvas]:
    """Return the grid line before each pixel and the distance from it, in cells."""
    at = np.arange(side, dtype=np.float32) * np.float32(cells / side)
    low = at.astype(np.intp)
    return low, (at - low).astype(np.float32)


def noise(rng: np.random.Generator, side: int, octaves: tuple[tuple[int, float], ...]) -> Canvas:
    """Return value noise between 0 and 1, of shape (side, side)."""
    total = np.zeros((side, side), np.float32)
    for cells, weight in octaves:
        values = rng.random((cells + 1, cells + 1), dtype=np.float32) * np.float32(weight)
        low, part = _steps(side, cells)
        columns = values[:, low]
        columns += (values[:, low + 1] - columns) * part
        rows = columns[low]
        total += rows
        np.subtract(columns[low + 1], rows, out=rows)
        rows *= part[:, None]
        total += rows
    return total / np.float32(sum(weight for _, weight in octaves))


def grain(rng: np.random.Generator, side: int) -> Canvas:
    """Return independent noise for every pixel and channel, (3, side, side), with a standard deviation of 10."""
    pairs = np.frombuffer(rng.bytes(2 * 3 * side * side), np.uint8).reshape(2, 3, side, side)
    return (pairs[0].astype(np.float32) + pairs[1] - 255) * np.float32(10 / 104.5)


def background(rng: np.random.Generator, side: int, kind: str) -> Canvas:
    """Return the canvas of a background, of shape (3, side, side)."""
    tone = np.array(TONES[kind]) + rng.integers(-16, 17) + rng.integers(-10, 11, 3)
    first, second = (noise(rng, side, CHROMA) - np.float32(0.5) for _ in range(2))
    light = 60 * (noise(rng, side, OCTAVES) - np.float32(0.5))
    rows, columns = np.ogrid[:side, :side]
    shift, step = int(rng.integers(32)), int(rng.integers(10, 17))
    if kind == "grass":
        # Blades: columns of one value, eight pixels high.
        light += (28 * rng.random((side // 8, side), dtype=np.float32) - 14).repeat(8, 0)
    elif kind == "bricks":
        row = (rows + shift) // step
        light[((rows + shift) % step < 2) | ((columns + step * (row % 2) + shift) % (2 * step) < 2)] += 30
    elif kind == "tiles":
        wide = step + 8
        light[((rows + shift) % wide < 2) | ((columns + shift) % wide < 2)] -= 34
    # Colour noise goes from warm to cold, and from green to magenta.
    red, green, blue = np.float32(tone)
    magenta = light - 15 * second
    return np.stack([magenta + 30 * first + red, light + 30 * second + green, magenta - 30 * first + blue])


@cache
def _waves(kind: int, period: int, side: int = 96) -> Canvas:
    """Return stripes in one of three directions or checks, of shape (side, side)."""
    y, x = np.arange(side)[:, None], np.arange(side)[None]
    band = ((x + 0 * y) // period, (y + 0 * x) // period, (x + y) // period, x // period + y // period)[kind]
    return (28 - 56 * (band % 2)).astype(np.float32)


def texture(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Return what is added to a thing's colour: a shading and, for two of three things, stripes or checks."""
    one, other, kind, period = rng.integers((-2, -2, 0, 2), (3, 3, 6, 6)).tolist()
    shade = np.arange(width, dtype=np.float32) * np.float32(14 * one / max(width - 1, 1)) - np.float32(7 * one)
    down = np.arange(height, dtype=np.float32) * np.float32(14 * other / max(height - 1, 1)) - np.float32(7 * other)
    total = shade[None] + down[:, None]
    return total + _waves(kind, period)[:height, :width] if kind < 4 else total


def leaves(rng: np.random.Generator, canvas: Canvas, count: int, locked: Mask | None = None) -> None:
    """Paint leaves at random places, also across the border, but not over locked pixels."""
    side = canvas.shape[-1]
    # The probability of a span falls with its third power, as in dead-leaves models of photographs.
    spans = np.minimum(LARGEST_LEAF, (3 / np.sqrt(1 - 0.9 * rng.random(count))).astype(int)).tolist()
    colours = LEAF_COLOURS[rng.integers(len(LEAF_COLOURS), size=count)] + rng.integers(-16, 17, (count, 3))
    places = rng.random((count, 2))
    for span, colour, place in zip(spans, colours.astype(np.float32), places, strict=True):
        mask = leaf_mask(rng, span)
        height, width = mask.shape
        top, left = (int(share * side) - size // 2 for share, size in zip(place, mask.shape, strict=True))
        rows, columns = slice(max(top, 0), min(top + height, side)), slice(max(left, 0), min(left + width, side))
        part = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        if locked is None or not (locked[rows, columns] & part).any():
            canvas[:, rows, columns][:, part] = colour[:, None]


def glyph(digit: int, height: int, width: int) -> tuple[slice, slice, Mask]:
    """Return the place of a digit in the middle of a sign, and its pixels there."""
    scale = max(min((height - 2) // 7, (width - 2) // 5), 1)
    pixels = DIGITS[digit].repeat(scale, 0).repeat(scale, 1)
    y, x = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    return slice(y, y + pixels.shape[0]), slice(x, x + pixels.shape[1]), pixels
