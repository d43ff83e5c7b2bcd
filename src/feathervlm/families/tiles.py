"""Models that cut a picture into equal tiles and add the whole picture as one more tile, the overview, at either end.

Placeholders give the number of tiles, often not their arrangement: six may be two rows of three or three of two. The
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
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_square
from feathervlm.families.runs import PlaceholderRun

SKETCH = 8
"""Rows, and columns, of the small copy that is kept of a tile."""

Span = tuple[int, int]
"""First position and length of consecutive placeholders."""


class Tiles(Placeholders):
    """Base of the families with tiles and an overview after them."""

    geometry = "equal tiles, joined to one plane, and an overview"

    @property
    @abstractmethod
    def side(self) -> int:
        """Rows, and columns, of the tokens of a tile."""

    @abstractmethod
    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        """Return the number of tiles of every image of a prompt, the overview included.

        Args:
            ids: Token ids of the prompt.
            spans: The spans of its placeholders.
        """

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        return sketch(arguments[PIXELS[modality]])

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        counts = [n for ids in prompts(call, visual) for n in self.count(ids, spans_of(ids, self.token("image")))]
        tiles = visual.facts if visual.output is not None else self.look(visual.modality, visual.given)
        if sum(counts) != len(tiles):
            raise PruningError(
                f"The prompt has placeholders for {sum(counts)} tiles and there are {len(tiles)}; make the prompt with "
                "the model's own processor."
            )
        return [joined(self.side, *shape) for shape in arrangements(tiles.split(counts))]

    def states(self, output: Any) -> Tensor:
        """Return the states of the encoder's output that the projector takes, of shape (tiles, patches, dim)."""
        states: Tensor = output.last_hidden_state
        return states

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        return merge_square(self.states(output), self.side)


def joined(side: int, rows: int, cols: int, *, overview_first: bool = False) -> PlaceholderRun:
    """Return the placeholders of a picture in tiles and an overview.

    Args:
        side: Rows, and columns, of the tokens of a tile.
        rows: Rows of tiles; 0 if there is only the overview.
        cols: Columns of tiles.
        overview_first: Whether the overview is before the tiles.
    """
    overview = Plane((1, side, side))
    if not rows:
        return PlaceholderRun((overview,))
    tiled = Plane((1, rows * side, cols * side), tiles=(rows, cols))
    return PlaceholderRun((overview, tiled) if overview_first else (tiled, overview))


def prompts(call: ModelCall, visual: VisualInput) -> list[list[int]]:
    """Return the token ids of every prompt, once for all beams and answers of the prompt."""
    ids: list[list[int]] = call.ids()[:: visual.repeats].tolist()
    return ids


def spans_of(ids: Sequence[int], token: int) -> list[Span]:
    """Return the spans of a token.

    >>> spans_of([1, 9, 9, 2, 9], 9)
    [(1, 2), (4, 1)]
    """
    starts = [i for i, word in enumerate(ids) if word == token and (i == 0 or ids[i - 1] != token)]
    ends = [i + 1 for i, word in enumerate(ids) if word == token and (i + 1 == len(ids) or ids[i + 1] != token)]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def up_to_overview(ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Return the number of tiles of every image of a prompt whose images end with an overview that has a mark.

    Args:
        ids: Token ids of the prompt.
        spans: The spans of its placeholders. The token before the last one is the mark of an overview.
    """
    if not spans:
        return []
    mark = ids[spans[-1][0] - 1]
    ends = [number + 1 for number, (start, _) in enumerate(spans) if ids[start - 1] == mark]
    return [end - previous for previous, end in zip([0, *ends], ends, strict=False)]


def sketch(pixels: Tensor) -> Tensor:
    """Return a small copy of every tile.

    Args:
        pixels: Pixels of shape (..., channels, height, width).

    Returns:
        Pixels of shape (tiles, channels, 8, 8).
    """
    return F.adaptive_avg_pool2d(pixels.detach().flatten(0, -4).float(), SKETCH)


def arrangements(images: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return the (rows, cols) of the tiles of every image; (0, 0) if there is only the overview.

    Args:
        images: For each image the sketches of its tiles, the overview last, of shape (tiles, channels, 8, 8).
    """
    shapes = [
        [(rows, (len(image) - 1) // rows) for rows in range(1, len(image)) if not (len(image) - 1) % rows]
        for image in images
    ]
    errors = [
        (mosaic(image[:-1], *shape) - image[-1]).square().mean()
        for image, possible in zip(images, shapes, strict=True)
        if len(possible) > 1
        for shape in possible
    ]
    measured = iter(torch.stack(errors).tolist() if errors else ())  # one read of the device for all images
    best = []
    for possible in shapes:
        ranked = [(next(measured) if len(possible) > 1 else 0.0, shape) for shape in possible]
        best.append(min(ranked)[1] if ranked else (0, 0))
    return best


def mosaic(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """Return the picture that tiles in rows and columns form, in the size of one tile.

    Args:
        tiles: Sketches of shape (rows * cols, channels, 8, 8).
        rows: Rows of tiles.
        cols: Columns of tiles.

    Returns:
        Pixels of shape (channels, 8, 8).
    """
    picture = tiles.unflatten(0, (rows, cols)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return F.adaptive_avg_pool2d(picture, SKETCH)
