"""Pictures of what a pruned model still sees, one panel per stage: patches that run as they are, frozen ones bluish,
waiting ones yellowish, dropped ones dim."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from feathervlm.core.layout import Box
from feathervlm.engine.report.cells import FROZEN, RUNNING, WAITING
from feathervlm.utils.pictures import as_rgb

CAPTION, GAP = 24, 12
"""Height of the caption above a panel and distance between panels, in pixels."""
TINTS = {FROZEN: (0.45, 0.6, 0.95), WAITING: (0.75, 0.65, 0.3)}
"""Shares of red, green and blue that are left of a cell."""
WORDS = {FROZEN: "frozen", WAITING: "waiting"}


def overlay(
    picture: Image.Image,
    grids: Sequence[Tensor],
    titles: Sequence[str],
    *,
    box: Box | None = None,
    dim: float = 0.22,
    size: int = 384,
    frame: int = 0,
) -> Image.Image:
    """Draw what becomes of the cells at each stage over the picture.

    Args:
        picture: The image of the prompt.
        grids: For each stage what becomes of every cell, one of `DROPPED`, `RUNNING`, `FROZEN` and `WAITING`, or
            whether it is kept: long or bool (frames, rows, cols).
        titles: For each stage a caption, which is followed by the number of cells that run, are frozen and wait.
        box: (left, top, right, bottom) in pixels of the part that the grid covers; default the whole picture. What is
            outside is darkest, because the model never saw it.
        dim: Brightness of dropped cells, from 0 to 1.
        size: Length of the longer side of a panel, in pixels.
        frame: Number of the frame of a video.

    Returns:
        An RGB image with the panels side by side.
    """
    picture = as_rgb(picture)
    scale = size / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    left, top, right, bottom = (side * scale for side in box or (0, 0, *picture.size))
    canvas = Image.new("RGB", (len(grids) * (width + GAP) - GAP, height + CAPTION), "white")
    draw = ImageDraw.Draw(canvas)
    for panel, (grid, title) in enumerate(zip(grids, titles, strict=True)):
        cells = grid[frame].cpu().numpy().astype(int)
        covered = (left, top, right, bottom)
        light = brightness(cells == RUNNING, (width, height), covered, dim)[..., None].repeat(3, 2)
        for mode, tint in TINTS.items():
            light[brightness(cells == mode, (width, height), covered, dim) == 1] = tint
        x = panel * (width + GAP)
        canvas.paste(Image.fromarray((pixels * light).astype(np.uint8)), (x, CAPTION))
        others = [f", {int((cells == mode).sum())} {word}" for mode, word in WORDS.items() if (cells == mode).any()]
        text = f"{title}: {int((cells == RUNNING).sum())}{''.join(others)} of {cells.size}"
        draw.text((x + 2, 4), text, fill="black", font=ImageFont.load_default(14))
    return canvas


def brightness(cells: NDArray[np.bool_], size: tuple[int, int], box: Box, dim: float) -> NDArray[np.float64]:
    """Return the brightness of every pixel of a picture, of shape (height, width).

    Args:
        cells: The kept cells, of shape (rows, cols).
        size: (width, height) of the picture.
        box: Part of the picture that the cells cover, in its pixels; what is outside is darkest.
        dim: Brightness of dropped cells.
    """
    return over_pixels(np.where(cells, 1.0, dim), size, box, dim / 3)


def over_pixels(values: NDArray, size: tuple[int, int], box: Box, outside: float) -> NDArray:
    """Return the value of the cell that covers each pixel of a picture, of shape (height, width).

    Args:
        values: A value for each cell, of shape (rows, cols).
        size: (width, height) of the picture.
        box: Part of the picture that the cells cover, in its pixels.
        outside: Value of pixels that no cell covers.
    """
    rows, cols = values.shape
    left, top, right, bottom = box
    row = np.floor((np.arange(size[1]) + 0.5 - top) / (bottom - top) * rows).astype(int)
    col = np.floor((np.arange(size[0]) + 0.5 - left) / (right - left) * cols).astype(int)
    covered = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))[None, :]
    return np.where(covered, values[row.clip(0, rows - 1)][:, col.clip(0, cols - 1)], outside)


def inside(outer: Box, shares: Box) -> Box:
    """Return the box that covers these shares of the width and height of the outer box."""
    left, top, right, bottom = outer
    width, height = right - left, bottom - top
    return left + shares[0] * width, top + shares[1] * height, left + shares[2] * width, top + shares[3] * height


def boxed(picture: Image.Image, boxes: Mapping[str, Box], title: str, size: int = 384) -> Image.Image:
    """Draw boxes in pixels of a picture, by their colours, in a panel with a caption.

    Args:
        picture: The picture.
        boxes: (left, top, right, bottom) of each colour.
        title: The caption.
        size: Length of the longer side of the panel, in pixels.
    """
    scale = size / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    panel = Image.new("RGB", (width, height + CAPTION), "white")
    view = picture.resize((width, height), Image.Resampling.LANCZOS)
    for colour, box in boxes.items():
        left, top, right, bottom = (
            end * side / full for end, side, full in zip(box, view.size * 2, picture.size * 2, strict=True)
        )
        ImageDraw.Draw(view).rectangle((left, top, max(right, left), max(bottom, top)), outline=colour, width=3)
    panel.paste(view, (0, CAPTION))
    ImageDraw.Draw(panel).text((2, 4), title, fill="black", font=ImageFont.load_default(14))
    return panel


def beside(panels: Sequence[Image.Image]) -> Image.Image:
    """Return the panels in one picture, side by side."""
    width = sum(panel.width + GAP for panel in panels) - GAP
    canvas, left = Image.new("RGB", (width, max(panel.height for panel in panels)), "white"), 0
    for panel in panels:
        canvas.paste(panel, (left, 0))
        left += panel.width + GAP
    return canvas


def stack(rows: list[Image.Image]) -> Image.Image:
    """Return the pictures in one, one below the other."""
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas
