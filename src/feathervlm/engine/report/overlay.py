"""Pictures of what a pruned model still sees: kept patches bright, dropped ones dim, one panel per stage."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from feathervlm.core.layout import Box

CAPTION, GAP = 24, 12
"""Height of the caption above a panel and distance between panels, in pixels."""


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
    """Draw the kept cells of each stage over the picture.

    Args:
        picture: The image of the prompt.
        grids: For each stage the kept cells, bool (frames, rows, cols).
        titles: For each stage a caption, which is followed by the number of kept cells.
        box: (left, top, right, bottom) in pixels of the part that the grid covers; default the whole picture. What is
            outside is darkest, because the model never saw it.
        dim: Brightness of dropped cells, from 0 to 1.
        size: Length of the longer side of a panel, in pixels.
        frame: Number of the frame of a video.

    Returns:
        An RGB image with the panels side by side.
    """
    scale = size / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    pixels = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    left, top, right, bottom = (side * scale for side in box or (0, 0, *picture.size))
    canvas = Image.new("RGB", (len(grids) * (width + GAP) - GAP, height + CAPTION), "white")
    draw = ImageDraw.Draw(canvas)
    for panel, (grid, title) in enumerate(zip(grids, titles, strict=True)):
        cells = grid[frame].cpu().numpy()
        rows, cols = cells.shape
        row = np.floor((np.arange(height) + 0.5 - top) / (bottom - top) * rows).astype(int)
        col = np.floor((np.arange(width) + 0.5 - left) / (right - left) * cols).astype(int)
        covered = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))[None, :]
        kept = cells[row.clip(0, rows - 1)][:, col.clip(0, cols - 1)]
        brightness = np.where(covered, np.where(kept, 1.0, dim), dim / 3)[..., None]
        x = panel * (width + GAP)
        canvas.paste(Image.fromarray((pixels * brightness).astype(np.uint8)), (x, CAPTION))
        text = f"{title}: {int(cells.sum())} of {cells.size}"
        draw.text((x + 2, 4), text, fill="black", font=ImageFont.load_default(14))
    return canvas


def inside(outer: Box, shares: Box) -> Box:
    """Return the box that covers these shares of the width and height of the outer box."""
    left, top, right, bottom = outer
    width, height = right - left, bottom - top
    return left + shares[0] * width, top + shares[1] * height, left + shares[2] * width, top + shares[3] * height


def stack(rows: list[Image.Image]) -> Image.Image:
    """Return the pictures in one, one below the other."""
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas
