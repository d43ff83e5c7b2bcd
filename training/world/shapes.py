"""The shapes of things as masks: slightly turned and stretched, cropped to their bounding boxes.

Only elementwise arithmetic is used, and cosines and sines are constants, so that every machine draws the same masks.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "cross", "sign", "ring", "diamond", "star")
TURNS = (
    (1.0, 0.0), (0.991445, 0.130526), (0.965926, 0.258819), (0.92388, 0.382683),
    (0.866025, 0.5), (0.793353, 0.608761), (0.707107, 0.707107),
)  # fmt: skip
"""Cosine and sine of the multiples of 7.5 degrees from 0 to 45."""
SIGN_WIDTH = 0.85
"""Width of a sign, relative to its height."""

Mask = NDArray[np.bool_]
Values = NDArray[np.float32]


def thing_mask(rng: np.random.Generator, shape: str, span: int) -> Mask:
    """Return the mask of a shape about `span` pixels high, turned by up to 15 degrees; signs are upright."""
    turn, mirror, stretch = rng.integers((3, 2, 3)).tolist()
    if shape == "sign":
        return _thing(shape, span, 0, 0, SIGN_WIDTH)
    return _thing(shape, span, turn, mirror, (0.9, 1.0, 1.1)[stretch])


@cache
def _thing(shape: str, span: int, turn: int, mirror: int, stretch: float) -> Mask:
    cosine, sine = _turned(turn, mirror)
    # No turned and stretched shape reaches farther than 0.7 spans from its centre.
    reach = int(0.7 * span) + 1
    line = np.arange(-reach, reach + 1, dtype=np.float32) + np.float32(0.0 if span % 2 else 0.5)
    line /= np.float32(span / 2)
    v, u = line[:, None], line[None] / np.float32(stretch)
    return _crop(_inside(shape, cosine * u - sine * v, sine * u + cosine * v))


def leaf_mask(rng: np.random.Generator, span: int) -> Mask:
    """Return the mask of a disc, box or triangle of `span` pixels, with any turn and a random aspect ratio."""
    shape, turn, mirror, swap, stretch = rng.integers((3, len(TURNS), 2, 2, 4)).tolist()
    return _leaf(SHAPES[shape], span, turn, mirror, swap, (0.4, 0.6, 0.8, 1.0)[stretch])


@cache
def _leaf(shape: str, span: int, turn: int, mirror: int, swap: int, stretch: float) -> Mask:
    cosine, sine = _turned(turn, mirror)
    if swap:
        cosine, sine = sine, -cosine
    line = np.arange(-span, span + 1, dtype=np.float32) / np.float32(span / 2)
    v, u = line[:, None], line[None]
    return _crop(_inside(shape, (cosine * u - sine * v) / np.float32(stretch), sine * u + cosine * v))


def _turned(turn: int, mirror: int) -> tuple[np.float32, np.float32]:
    cosine, sine = TURNS[turn]
    return np.float32(cosine), np.float32(-sine if mirror else sine)


def _crop(mask: Mask) -> Mask:
    """Return a mask without empty rows and columns at its borders, read-only because it is cached."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    part.flags.writeable = False
    return part


def _inside(shape: str, x: Values, y: Values) -> Mask:
    """Return which points are inside a shape that fills -1 to 1 on both axes."""
    wide, high = np.abs(x), np.abs(y)
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "ring":
        far = x * x + y * y
        return (far <= 1) & (far > np.float32(0.33))
    if shape == "diamond":
        return wide + high <= 1
    if shape == "star":
        return (wide + 3 * high <= 1) | (3 * wide + high <= 1)
    box = (wide <= 1) & (high <= 1)
    if shape == "triangle":
        return box & (2 * wide <= y + 1)
    if shape == "cross":
        return box & ((wide < np.float32(0.36)) | (high < np.float32(0.36)))
    return box
