"""Models that cut a picture into equal tiles and add the whole picture as one more tile, the overview, at either end.

Placeholders tell how many tiles there are, often not how they lie: six may be two rows of three or three of two. The
overview shows the same picture, so the arrangement whose mosaic looks most like it is the right one.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import Plane
from feathervlm.engine.call import PIXELS, ModelCall, VisualInput
from feathervlm.families.base import PlaceholderRun, Placeholders
from feathervlm.families.patch_merging import merge_square

SKETCH = 8
"""Rows and columns of what is remembered of a tile."""

Span = tuple[int, int]
"""First position and length of a run of placeholders."""


class Tiles(Placeholders):
    """Base of the families with tiles and an overview behind them."""

    geometry = "equal tiles, joined to one plane, and an overview"

    @property
    @abstractmethod
    def side(self) -> int:
        """Rows, and columns, of a tile."""

    @abstractmethod
    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        """Tiles of every image of a prompt, the overview included, from the runs of placeholders."""

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        """A sketch of every tile: (tiles, channels, 8, 8)."""
        return sketch(arguments[PIXELS[modality]])

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Tiles and overview of every image."""
        counts = [n for ids in prompts(call, visual) for n in self.count(ids, spans_of(ids, self.token("image")))]
        tiles = visual.facts if visual.output is not None else self.look(visual.modality, visual.given)
        if sum(counts) != len(tiles):
            raise PruningError(
                f"The prompt has placeholders for {sum(counts)} tiles and there are {len(tiles)}; make the prompt with "
                "the model's own processor."
            )
        return [joined(self.side, *shape) for shape in arrangements(tiles.split(counts))]

    def states(self, output: Any) -> Tensor:
        """What the tower makes of every tile: (tiles, patches, dim)."""
        states: Tensor = output.last_hidden_state
        return states

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """The tower's states, merged."""
        return merge_square(self.states(output), self.side)


def joined(side: int, rows: int, cols: int, *, overview_first: bool = False) -> PlaceholderRun:
    """The placeholders of a picture in so many rows and columns of tiles and an overview.

    Args:
        side: rows, and columns, of a tile.
        rows: of tiles; 0 if the overview is all there is.
        cols: of tiles.
        overview_first: it comes before the tiles.
    """
    overview = Plane((1, side, side))
    if not rows:
        return PlaceholderRun((overview,))
    tiled = Plane((1, rows * side, cols * side), tiles=(rows, cols))
    return PlaceholderRun((overview, tiled) if overview_first else (tiled, overview))


def prompts(call: ModelCall, visual: VisualInput) -> list[list[int]]:
    """Token ids of every prompt, each once however many answers are asked for."""
    ids: list[list[int]] = call.ids()[:: visual.repeats].tolist()
    return ids


def spans_of(ids: Sequence[int], token: int) -> list[Span]:
    """Runs of a token.

    >>> spans_of([1, 9, 9, 2, 9], 9)
    [(1, 2), (4, 1)]
    """
    starts = [i for i, word in enumerate(ids) if word == token and (i == 0 or ids[i - 1] != token)]
    ends = [i + 1 for i, word in enumerate(ids) if word == token and (i + 1 == len(ids) or ids[i + 1] != token)]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def up_to_overview(ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Tiles of every image where a mark of its own stands before the overview, the last tile of an image."""
    if not spans:
        return []
    mark = ids[spans[-1][0] - 1]
    ends = [number + 1 for number, (start, _) in enumerate(spans) if ids[start - 1] == mark]
    return [end - before for before, end in zip([0, *ends], ends, strict=False)]


def sketch(pixels: Tensor) -> Tensor:
    """Every tile in 8 x 8: (tiles, channels, 8, 8) from (..., channels, height, width)."""
    return F.adaptive_avg_pool2d(pixels.detach().flatten(0, -4).float(), SKETCH)


def arrangements(images: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(rows, cols) of the tiles of every image; (0, 0) where the overview is all there is.

    Args:
        images: sketches of each image's tiles, the overview last: (tiles, channels, 8, 8).
    """
    shapes = [[(rows, (len(t) - 1) // rows) for rows in range(1, len(t)) if not (len(t) - 1) % rows] for t in images]
    errors = [
        (mosaic(tiles[:-1], *shape) - tiles[-1]).square().mean()
        for tiles, several in zip(images, shapes, strict=True)
        if len(several) > 1
        for shape in several
    ]
    told = iter(torch.stack(errors).tolist() if errors else ())
    found = []
    for several in shapes:
        ranked = [(next(told) if len(several) > 1 else 0.0, shape) for shape in several]
        found.append(min(ranked)[1] if ranked else (0, 0))
    return found


def mosaic(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """The picture that tiles in so many rows and columns make, in the size of one: (channels, 8, 8)."""
    joined = tiles.unflatten(0, (rows, cols)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return F.adaptive_avg_pool2d(joined, SKETCH)
