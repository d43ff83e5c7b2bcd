"""Molmo 2: an overview, then a sharper view in one piece; videos one grid per frame.

The sharper view is cut into overlapping crops, but its tokens are in raster order over the whole: `image_grids` has the
(rows, cols) of both views. Each token pools a window of patches, listed in `image_token_pooling` and padded with -1
if a window extends beyond the edge. Marks at the ends of rows have ids of their own and are text.
Its image processor needs torchvision, so the tests prepare pictures by hand, as its code does.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.core.layout import Box, Plane
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.runs import PlaceholderRun


class Molmo2(Placeholders):
    """`Molmo2ForConditionalGeneration`."""

    title = "Molmo 2"
    model_types = ("molmo2",)
    modalities = ("image", "video")
    geometry = "an overview and a view of overlapping crops, joined to one plane; videos one grid per frame"

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return two planes per image, and one with several frames per video."""
        windows = visual.given[f"{visual.modality}_token_pooling"]
        windows = (windows[(windows >= 0).any(1)] >= 0).cpu()
        runs, start = [], 0
        for sides in visual.given[f"{visual.modality}_grids"].tolist():
            shapes = [(1, *sides[:2]), (1, *sides[2:])] if visual.modality == "image" else [tuple(sides)]
            planes = []
            for frames, rows, cols in shapes:
                box = covered(windows[start : start + rows * cols], rows, cols)
                planes.append(Plane((frames, rows, cols), box))
                start += frames * rows * cols
            runs.append(PlaceholderRun(tuple(planes)))
        return runs

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, averaged over each window."""
        states = output.last_hidden_state.flatten(0, 1)
        windows = visual.given[f"{visual.modality}_token_pooling"].to(states.device)
        windows = windows[(windows >= 0).any(1)]
        inside = (windows >= 0)[..., None]
        total: Tensor = (states[windows.clamp(min=0)] * inside).sum(1)
        return total / inside.sum(1)


def covered(windows: Tensor, rows: int, cols: int) -> Box:
    """Return the box that a grid of pooling windows covers, which can extend beyond the picture.

    Args:
        windows: False outside the picture, bool (rows * cols, patches of a window).
        rows: Rows of the grid.
        cols: Columns of the grid.
    """
    side = isqrt(windows.shape[1])
    patches = windows.view(rows, cols, side, side)
    (top, bottom), (left, right) = (_margins(patches.any(dim=3).any(dim=1)), _margins(patches.any(dim=2).any(dim=0)))
    return -left, -top, 1 + right, 1 + bottom


def _margins(line: Tensor) -> tuple[float, float]:
    """Return the margins before and after the picture, as shares of it, from (windows, patches) of one side."""
    inside = line.flatten().nonzero()[:, 0].tolist()
    length = inside[-1] - inside[0] + 1
    return inside[0] / length, (line.numel() - 1 - inside[-1]) / length
