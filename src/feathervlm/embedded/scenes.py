"""Procedural scenes: a textured background and a few coloured shapes, some of them signs that carry a digit.

Everything follows from a seed, is drawn with NumPy alone (no fonts, no anti-aliasing, hence the same pixels on every
machine) and is placed uniformly among the places where it fits: no shape or colour prefers a part of the picture, and
no rule distinguishes top from bottom or left from right. Half of the objects are copies of an earlier one with one
attribute changed, so that a reference has to be read to its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 128
"""Width and height of a scene in pixels."""

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 175, 60),
    "blue": (45, 70, 225),
    "yellow": (235, 210, 50),
    "purple": (155, 55, 190),
    "cyan": (60, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "cross", "sign")
SIZES = ("small", "large")
BACKGROUNDS = ("sky", "grass", "bricks", "tiles")

# The digits 0 to 9 in 5 x 7 pixels, row by row, one hexadecimal pair per row.
_GLYPHS = (
    "0e11131519110e 040c040404040e 0e11010204081f 1f02040201110e 02060a121f0202 "
    "1f101e0101110e 0608101e11110e 1f010204080808 0e11110e11110e 0e11110f01020c"
)
DIGITS = [
    np.array([[row >> bit & 1 for bit in (4, 3, 2, 1, 0)] for row in bytes.fromhex(code)], bool)
    for code in _GLYPHS.split()
]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """One object of a scene; `box` is (left, top, right, bottom) in pixels, right and bottom exclusive."""

    shape: str
    colour: str
    size: str
    box: tuple[int, int, int, int]
    digit: int | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box, (x, y) in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class World:
    """What scenes may contain.

    Attributes:
        counts: Possible numbers of objects, equally likely.
        small: Range in pixels of "small", both ends inclusive.
        large: Range in pixels of "large", both ends inclusive.
        share_of_large: Share of large objects among the drawn ones; fewer are placed, because they fit less often.
    """

    counts: Sequence[int]
    small: tuple[int, int] = (16, 20)
    large: tuple[int, int] = (28, 36)
    share_of_large: float = 0.4


SEEN = World(counts=range(3, 9))
"""The ordinary scenes, in training and in the held-out splits."""

CLUTTERED = World(counts=(10, 11, 12), share_of_large=0.15)
"""Many, mostly small objects; also seen in training."""

UNSEEN = World(counts=(9, 13), small=(21, 23), large=(38, 42), share_of_large=0.15)
"""Sizes and counts which never occur in training."""


@dataclass(frozen=True)
class Scene:
    """A drawn scene: its objects in the order of placing, the background, and the pixels of shape (SIDE, SIDE, 3)."""

    items: tuple[Item, ...]
    background: str
    pixels: Pixels

    @property
    def image(self) -> Image.Image:
        """The scene as a picture, 128 x 128, RGB."""
        return Image.fromarray(self.pixels)


def draw(rng: np.random.Generator, world: World = SEEN) -> Scene:
    """Draw a random scene of `world`; the same generator state gives the same scene."""
    background, items = arrange(rng, world)
    canvas = _background(rng, background)
    for item in items:
        _paint(canvas, item, rng)
    canvas += 6 * rng.standard_normal(canvas.shape, dtype=np.float32)
    return Scene(tuple(items), background, canvas.clip(0, 255).astype(np.uint8))


def arrange(rng: np.random.Generator, world: World = SEEN) -> tuple[str, list[Item]]:
    """Return the background and the objects of a scene without drawing it, for texts about scenes."""
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    count = world.counts[int(rng.integers(len(world.counts)))]
    while len(items := _place(rng, world, count)) < count:
        pass  # there was no room for one of them; start again, so that the number is as drawn
    return background, items


def _place(rng: np.random.Generator, world: World, count: int) -> list[Item]:
    """Place `count` objects, or fewer if the picture is full."""
    items: list[Item] = []
    taken: set[tuple[str, str, str]] = set()
    for _ in range(40 * count):
        if len(items) == count:
            break
        shape, colour, size = looks = _looks(rng, items, world)
        box = _box(rng, world, shape, size)
        if looks not in taken and not any(_touch(box, other.box) for other in items):
            taken.add(looks)
            digit = int(rng.integers(10)) if shape == "sign" else None
            items.append(Item(shape, colour, size, box, digit))
    return items


def _looks(rng: np.random.Generator, items: list[Item], world: World) -> tuple[str, str, str]:
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
    size = SIZES[int(rng.random() < world.share_of_large)]
    if items and rng.random() < 0.5:
        twin = items[rng.integers(len(items))]
        change = rng.integers(3)
        shape = shape if change == 0 else twin.shape
        colour = colour if change == 1 else twin.colour
        size = size if change == 2 else twin.size
    return shape, colour, size


def _box(rng: np.random.Generator, world: World, shape: str, size: str) -> tuple[int, int, int, int]:
    low, high = world.small if size == "small" else world.large
    height = int(rng.integers(low, high + 1))
    width = height if shape != "sign" else round(0.85 * height)
    left, top = rng.integers(0, SIDE - width + 1), rng.integers(0, SIDE - height + 1)
    return int(left), int(top), int(left) + width, int(top) + height


def _touch(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    gap = 1
    return one[0] - gap < other[2] and other[0] - gap < one[2] and one[1] - gap < other[3] and other[1] - gap < one[3]


def _background(rng: np.random.Generator, kind: str) -> NDArray[np.float32]:
    """Paint muted tones, so that every object colour stands out from every background."""
    tone = {"sky": (125, 142, 160), "grass": (98, 118, 92), "bricks": (132, 104, 94), "tiles": (128, 126, 122)}[kind]
    canvas = np.empty((SIDE, SIDE, 3), np.float32)
    canvas[:] = np.array(tone) + rng.integers(-14, 15) + rng.integers(-6, 7, 3)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    shift = int(rng.integers(16))
    if kind == "sky":
        canvas += np.linspace(-16, 16, SIDE)[:, None, None] * rng.choice([-1, 1])
    elif kind == "grass":
        canvas += 12 * rng.standard_normal((1, SIDE, 1), dtype=np.float32)
    elif kind == "bricks":
        row = (rows + shift) // 10
        mortar = ((rows + shift) % 10 == 0) | ((columns + 10 * (row % 2) + shift) % 20 == 0)
        canvas[mortar] += 28
    else:
        canvas[((rows + shift) % 16 == 0) | ((columns + shift) % 16 == 0)] -= 28
    return canvas


def _paint(canvas: NDArray[np.float32], item: Item, rng: np.random.Generator) -> None:
    left, top, right, bottom = item.box
    patch = canvas[top:bottom, left:right]
    colour = np.array(COLOURS[item.colour]) + rng.integers(-18, 19, 3)
    patch[_mask(item.shape, bottom - top, right - left)] = colour
    if item.digit is not None:
        glyph = DIGITS[item.digit]
        scale = min((bottom - top - 3) // 7, (right - left - 3) // 5)
        glyph = glyph.repeat(scale, 0).repeat(scale, 1)
        y, x = (patch.shape[0] - glyph.shape[0]) // 2, (patch.shape[1] - glyph.shape[1]) // 2
        ink = 20.0 if colour.mean() > 110 else 245.0
        patch[y : y + glyph.shape[0], x : x + glyph.shape[1]][glyph] = ink


def _mask(shape: str, height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels of its box that a shape covers; every shape touches all four sides of its box."""
    y = (np.arange(height)[:, None] + 0.5) / height * 2 - 1
    x = (np.arange(width)[None] + 0.5) / width * 2 - 1
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "triangle":
        return np.abs(x) <= (y + 1) / 2 + 1 / width
    if shape == "cross":
        return (np.abs(x) < 0.34) | (np.abs(y) < 0.34)
    return np.ones((height, width), bool)
