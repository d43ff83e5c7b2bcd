"""Pictures of a page: kept tokens bright, scores as a heat map, boxes."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from feathervlm.app.layers import FROZEN, KEPT, MERGED, WAITING, PlaneView, ScoreMap
from feathervlm.core.layout import Box
from feathervlm.engine.report.overlay import over_pixels, stack

SIDE = 384
"""Length of the longer side of a drawing in pixels."""
DIM = 0.2
"""Brightness of dropped cells."""
TINTS = {
    MERGED: np.array([64.0, 132.0, 255.0], np.float32),
    FROZEN: np.array([40.0, 190.0, 200.0], np.float32),
    WAITING: np.array([235.0, 170.0, 40.0], np.float32),
}
"""Colours of cells whose content was merged into kept ones, that are frozen, and that wait."""
TINTED = 0.45
HEAT = np.array(
    [
        (0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
        (252, 255, 164),
    ],
    np.float32,
)  # fmt: skip
"""Colours of scores from the smallest to the largest, equally far apart (after matplotlib's inferno, CC0)."""
HEAT_WEIGHT = 0.75
Pixels = NDArray[np.float32]


def fitted(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """Return a picture with the longer side of that many pixels."""
    scale = side / max(picture.size)
    width, height = (max(round(length * scale), 1) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def kept_patches(
    picture: Image.Image, views: Sequence[PlaneView], layer: int, boxes: Mapping[str, Box] | None = None
) -> Image.Image:
    """Draw what a layer sees: kept cells bright, merged, frozen and waiting ones tinted, dropped ones dim.

    There is a row for each grid.

    Args:
        picture: The picture.
        views: What every layer sees of it; empty if all of it is there.
        layer: The layer.
        boxes: Boxes in pixels of the picture, by their colours.
    """
    view, scale = fitted(picture), SIDE / max(picture.size)
    pixels = np.asarray(view, np.float32)
    rows = [view] if not views else []
    for plane in views:
        box, states = _scaled(plane.box, scale), plane.states[layer]
        light = over_pixels(np.where(states == KEPT, 1.0, DIM), view.size, box, DIM / 3)[..., None]
        shaded = pixels * light
        for state, tint in TINTS.items():
            shaded = shaded + over_pixels(states == state, view.size, box, 0)[..., None] * tint * TINTED
        rows.append(Image.fromarray(shaded.clip(0, 255).astype(np.uint8)))
    return stack([with_boxes(row, boxes or {}, scale) for row in rows])


def heat_map(picture: Image.Image, score_map: ScoreMap) -> Image.Image:
    """Draw scores over the grey picture, from the smallest to the largest; cells without a token are dark."""
    view, scale = fitted(picture), SIDE / max(picture.size)
    scores, box = score_map.scores, _scaled(score_map.box, scale)
    present = scores[np.isfinite(scores)]
    low, high = (float(present.min()), float(present.max())) if present.size else (0.0, 0.0)
    # The square root shows the small scores beside a few large ones.
    levels = over_pixels(np.sqrt((scores - low) / (high - low or 1.0)), view.size, box, np.nan)[..., None]
    grey = np.asarray(view.convert("L").convert("RGB"), np.float32)
    mixed = HEAT_WEIGHT * coloured(np.nan_to_num(levels[..., 0])) + (1 - HEAT_WEIGHT) * grey
    return Image.fromarray(np.where(np.isnan(levels), grey * DIM, mixed).clip(0, 255).astype(np.uint8))


def coloured(levels: NDArray[np.floating]) -> Pixels:
    """Return the colours of levels from 0 to 1, of shape (..., 3)."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(levels, stops, HEAT[:, channel]) for channel in range(3)], -1).astype(np.float32)


def with_boxes(view: Image.Image, boxes: Mapping[str, Box], scale: float) -> Image.Image:
    """Draw boxes in pixels of the original picture on a copy of its view."""
    view = view.copy()
    draw = ImageDraw.Draw(view)
    for colour, box in boxes.items():
        left, top, right, bottom = _scaled(box, scale)
        for grow, line in ((1, "black"), (0, colour)):  # a dark edge makes a line visible on every ground
            corners = (left - grow, top - grow, max(right, left) + grow, max(bottom, top) + grow)
            draw.rectangle(corners, outline=line, width=3 + 2 * grow)
    return view


def data_uri(picture: Image.Image) -> str:
    """Return a picture as an address that holds it."""
    stream = BytesIO()
    picture.save(stream, "WEBP", quality=82, method=2)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = (side * scale for side in box)
    return left, top, right, bottom
