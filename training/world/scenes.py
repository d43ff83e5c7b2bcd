"""Procedural scenes with statistics like those of photographs: noise with a 1/f spectrum, light, texture, occlusion.

A scene contains one population of things, all of which may be asked about and which together cover over two fifths of
the patches, so that a method that does not read the question cannot keep the patches of all of them. Half of the things
copy an earlier one with one attribute changed, so that a reference has to be read to its end. Leaves, whose spans are
at most two thirds of the smallest thing's, are texture. Everything follows from a seed, with the same pixels on every
machine. Things are placed uniformly among the places where they fit: no shape or colour prefers a part of the picture,
and no rule distinguishes top from bottom or left from right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.world import paint
from training.world.shapes import SHAPES, Mask, thing_mask

SIDE = 192
"""Width and height of a scene in pixels."""
COLOURS = {
    "red": (205, 45, 45),
    "green": (45, 165, 65),
    "blue": (50, 75, 215),
    "yellow": (225, 205, 55),
    "purple": (150, 60, 185),
    "cyan": (65, 200, 205),
    "orange": (232, 132, 40),
    "brown": (118, 74, 42),
    "pink": (240, 150, 185),
    "white": (240, 240, 236),
    "black": (24, 24, 28),
    "grey": (128, 128, 128),
}
SIZES = ("small", "large")
BACKGROUNDS = tuple(paint.TONES)
SMALLEST_SIGN = 16
"""Height in pixels from which a digit is drawn at twice its size."""
LOCKED = 63
"""Code of the pixels of digits, which nothing may cover; larger than the number of things in any scene."""
TRIES, ATTEMPTS = 24, 12
"""Places tried for one thing, and things tried before a scene is begun again."""

Box = tuple[int, int, int, int]
Looks = tuple[str, str, str]


@dataclass(frozen=True)
class Item:
    """One thing of a scene.

    Attributes:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        size: "small" or "large", by the whole thing, hidden parts included.
        box: Extent of the visible pixels, (left, top, right, bottom), right and bottom exclusive.
        digit: Digit on a sign, never hidden.
    """

    shape: str
    colour: str
    size: str
    box: Box
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
        counts: Possible numbers of things, equally likely.
        small: Range in pixels of "small", both ends inclusive.
        large: Range in pixels of "large", both ends inclusive; the probability of a span falls with its square.
        share_of_large: Share of large things among the drawn ones; fewer are placed, because they fit less often.
        leaves: Range of the number of leaves under the things, both ends inclusive.
        hidden: Largest share of a thing's pixels that later things may cover.
    """

    counts: Sequence[int]
    small: tuple[int, int] = (14, 20)
    large: tuple[int, int] = (28, 56)
    share_of_large: float = 0.5
    leaves: tuple[int, int] = (30, 90)
    hidden: float = 0.35


SEEN = World(counts=range(24, 31))
"""The ordinary scenes, in training and in the held-out splits."""

CLUTTERED = World(counts=range(34, 41), share_of_large=0.35, leaves=(60, 120))
"""More, mostly small things; also seen in training."""

UNSEEN = World(counts=(32, 43), small=(21, 23), large=(58, 64), share_of_large=0.2)
"""Sizes and counts which never occur in training."""


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        items: Things in the order of placing; later ones lie on earlier ones.
        background: One of `BACKGROUNDS`.
        pixels: RGB values of shape (SIDE, SIDE, 3).
        owner: Number of the thing that is seen at each pixel, of shape (SIDE, SIDE); -1 where there is none.
    """

    items: tuple[Item, ...]
    background: str
    pixels: NDArray[np.uint8]
    owner: NDArray[np.int16]

    @property
    def image(self) -> Image.Image:
        """The scene as a picture, RGB."""
        return Image.fromarray(self.pixels)


class _Arrangement:
    """Places things one after the other and knows which pixel shows which of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.looks: list[Looks] = []
        self.digits: list[int | None] = []
        self.places: list[tuple[int, int, Mask]] = []
        # Which thing each pixel shows, counted from 1; 0 is the background. LOCKED marks digits in `codes`.
        self.seen = np.zeros((SIDE, SIDE), np.int16)
        self.codes = np.zeros((SIDE, SIDE), np.int16)
        # How many of the pixels of each code may still be covered.
        self.spare = np.full(LOCKED + 1, float(SIDE * SIDE))
        self.spare[LOCKED] = 0

    def add(self, rng: np.random.Generator) -> bool:
        """Place one more thing; return whether there was room."""
        for _ in range(ATTEMPTS):
            looks = shape, _, size = _looks(rng, self.looks, self.world)
            if looks in self.looks:
                continue
            mask = thing_mask(rng, shape, _span(rng, self.world, shape, size))
            height, width = mask.shape
            for x, y in rng.integers((SIDE - width + 1, SIDE - height + 1), size=(TRIES, 2)).tolist():
                under = self.codes[y : y + height, x : x + width]
                covered = np.bincount(under[mask], minlength=LOCKED + 1)
                if (covered <= self.spare).all():
                    self.spare -= covered
                    self._put(x, y, mask, looks, int(rng.integers(10)) if shape == "sign" else None)
                    return True
        return False

    def _put(self, x: int, y: int, mask: Mask, looks: Looks, digit: int | None) -> None:
        self.looks.append(looks)
        self.digits.append(digit)
        self.places.append((x, y, mask))
        number = len(self.looks)
        for codes in (self.seen, self.codes):
            codes[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = number
        self.spare[number] = self.world.hidden * np.count_nonzero(mask)
        if digit is not None:
            rows, columns, _ = paint.glyph(digit, *mask.shape)
            self.codes[y + rows.start : y + rows.stop, x + columns.start : x + columns.stop] = LOCKED

    def items(self) -> list[Item]:
        """Return the things with the boxes of their visible pixels."""
        found = []
        for i, ((shape, colour, size), digit, (x, y, mask)) in enumerate(
            zip(self.looks, self.digits, self.places, strict=True)
        ):
            seen = self.seen[y : y + mask.shape[0], x : x + mask.shape[1]] == i + 1
            rows, columns = seen.any(1).nonzero()[0], seen.any(0).nonzero()[0]
            box = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
            found.append(Item(shape, colour, size, tuple(map(int, box)), digit))
        return found


def draw(rng: np.random.Generator, world: World = SEEN) -> Scene:
    """Draw a random scene of `world`; the same generator state gives the same scene."""
    kind, arrangement = _arrange(rng, world)
    items = arrangement.items()
    canvas = paint.background(rng, SIDE, kind)
    paint.leaves(rng, canvas, int(rng.integers(world.leaves[0], world.leaves[1] + 1)))
    for item, (x, y, mask) in zip(items, arrangement.places, strict=True):
        _paint(rng, canvas[:, y : y + mask.shape[0], x : x + mask.shape[1]], item, mask)
    paint.leaves(rng, canvas, int(rng.integers(0, 7)), arrangement.codes == LOCKED)
    canvas *= np.float32(0.8) + np.float32(0.4) * paint.noise(rng, SIDE, paint.LIGHT)
    canvas += paint.grain(rng, SIDE)
    pixels = np.ascontiguousarray(canvas.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    return Scene(tuple(items), kind, pixels, arrangement.seen - np.int16(1))


def arrange(rng: np.random.Generator, world: World = SEEN) -> tuple[str, list[Item]]:
    """Return the background and the things of a scene without drawing it, for texts about scenes."""
    kind, arrangement = _arrange(rng, world)
    return kind, arrangement.items()


def _arrange(rng: np.random.Generator, world: World) -> tuple[str, _Arrangement]:
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    count = world.counts[int(rng.integers(len(world.counts)))]
    while True:
        arrangement = _Arrangement(world)
        if all(arrangement.add(rng) for _ in range(count)):
            return kind, arrangement


def _span(rng: np.random.Generator, world: World, shape: str, size: str) -> int:
    if size == "small":
        low, high = world.small
        return int(rng.integers(max(low, SMALLEST_SIGN) if shape == "sign" else low, high + 1))
    low, high = world.large
    # The inverse of a uniform number between the inverses of the ends: a power law with exponent -2.
    low, high = low - 0.5, high + 0.5
    return round(low * high / (high - rng.random() * (high - low)))


def _looks(rng: np.random.Generator, others: Sequence[Looks], world: World) -> Looks:
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
    size = SIZES[int(rng.random() < world.share_of_large)]
    if others and rng.random() < 0.5:
        twin = others[rng.integers(len(others))]
        change = rng.integers(3)
        shape = shape if change == 0 else twin[0]
        colour = colour if change == 1 else twin[1]
        size = size if change == 2 else twin[2]
    return shape, colour, size


def _paint(rng: np.random.Generator, part: paint.Canvas, item: Item, mask: Mask) -> None:
    colour = np.array(COLOURS[item.colour], np.float32) + rng.integers(-16, 17, 3).astype(np.float32)
    if item.digit is None:
        part[:, mask] = colour[:, None] + paint.texture(rng, *mask.shape)[mask]
        return
    part[:, mask] = colour[:, None]
    rows, columns, pixels = paint.glyph(item.digit, *mask.shape)
    part[:, rows, columns][:, pixels] = 20.0 if colour.mean() > 110 else 245.0
