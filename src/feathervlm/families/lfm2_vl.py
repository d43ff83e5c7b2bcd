"""LFM2-VL: a small picture at its own shape; a large one in equal tiles, then a thumbnail of its own shape.

Pictures are rows of flattened patches, `spatial_shapes` has the (rows, cols) of each. The arrangement of tiles follows
from the thumbnail, which shows the same picture. Most decoder layers are short convolutions, which run over the
remaining tokens; only layers of full attention can score, so a criterion reads the nearest one before its stage.
Its image processor needs torchvision, so the tests prepare pictures by hand, as its code does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.layout import Plane
from feathervlm.engine.call import ModelCall, VisualInput
from feathervlm.families.base import Placeholders
from feathervlm.families.patch_merging import merge_blocks
from feathervlm.families.runs import PlaceholderRun, grid
from feathervlm.families.tiles import Span, arrangements, mosaic, prompts, sketch, spans_of

MAX_DIFFERENCE = 0.25
"""Share of a thumbnail's contrast by which the tiles may differ from it."""

REMEDY = "make the prompt with the model's own processor."

Shape = tuple[int, int]
"""(rows, cols)."""


class Lfm2VL(Placeholders):
    """`Lfm2VlForConditionalGeneration`."""

    title = "LFM2-VL"
    model_types = ("lfm2_vl",)
    geometry = "one grid of the picture's own shape, or equal tiles, joined to one plane, and a thumbnail"
    decoder = "short convolutions, some layers full"
    limits = "pictures in tiles need their thumbnail"

    def look(self, modality: str, arguments: dict[str, Any]) -> Any:
        """Return a sketch of every tile, assembled from its patches."""
        patch = self.model.config.vision_config.patch_size
        patches = arguments["pixel_values"].unflatten(-1, (patch, patch, -1))
        shapes = arguments["spatial_shapes"].tolist()
        return torch.cat([sketch(_assembled(tile, *shape)) for tile, shape in zip(patches, shapes, strict=True)])

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """Return one grid per small picture, and tiles and a thumbnail per large one."""
        factor = self.model.config.downsample_factor
        shapes = [(rows // factor, cols // factor) for rows, cols in visual.given["spatial_shapes"].tolist()]
        tiles = visual.facts if visual.output is not None else self.look(visual.modality, visual.given)
        parts: list[list[Shape]] = []
        remaining = shapes
        for ids in prompts(call, visual):
            for length in lengths(spans_of(ids, self.token("image"))):
                count = _count_tiles(remaining, length)
                parts.append(remaining[:count])
                remaining = remaining[count:]
        if remaining:
            raise PruningError(f"The prompt has no placeholders for {len(remaining)} of {len(shapes)} tiles; {REMEDY}")
        sketches = list(tiles.split([len(part) for part in parts]))
        shapes_of_tiles = arrangements(sketches)
        for sketched, shape in zip(sketches, shapes_of_tiles, strict=True):
            if len(sketched) > 1:
                _check_thumbnail(sketched, *shape)
        return [_run(part, *shape) for part, shape in zip(parts, shapes_of_tiles, strict=True)]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer, tile after tile, merged."""
        factor = self.model.config.downsample_factor
        shapes = [(rows // factor, cols // factor) for rows, cols in visual.given["spatial_shapes"].tolist()]
        return torch.cat(
            [
                merge_blocks(states[: rows * cols * factor**2], 1, rows, cols, factor)
                for states, (rows, cols) in zip(output.last_hidden_state, shapes, strict=True)
            ]
        )


def lengths(spans: Sequence[Span]) -> list[int]:
    """Return the number of placeholders of every picture, whose tiles have exactly one mark between them."""
    counts: list[int] = []
    end = None
    for start, length in spans:
        if end is not None and start == end + 1:
            counts[-1] += length
        else:
            counts.append(length)
        end = start + length
    return counts


def _count_tiles(shapes: Sequence[Shape], length: int) -> int:
    """Return how many of the next tiles have `length` tokens together."""
    tokens, count = 0, 0
    while tokens < length and count < len(shapes):
        tokens += shapes[count][0] * shapes[count][1]
        count += 1
    if tokens != length:
        raise PruningError(f"A picture has {length} placeholders but its tiles have {tokens} tokens; {REMEDY}")
    return count


def _run(parts: Sequence[Shape], rows: int, cols: int) -> PlaceholderRun:
    *tiles, whole = parts
    if not tiles:
        return grid(*whole)
    high, wide = tiles[0]
    return PlaceholderRun((Plane((1, rows * high, cols * wide), tiles=(rows, cols)), Plane((1, *whole))))


def _assembled(patches: Tensor, rows: int, cols: int) -> Tensor:
    """Assemble a picture of shape (1, channels, height, width).

    Args:
        patches: Patches of shape (patches, patch height, patch width, channels), padding of the batch at the end.
        rows: Rows of patches.
        cols: Columns of patches.
    """
    picture = patches[: rows * cols].unflatten(0, (rows, cols))
    return picture.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)[None]


def _check_thumbnail(tiles: Tensor, rows: int, cols: int) -> None:
    whole = tiles[-1]
    error = (mosaic(tiles[:-1], rows, cols) - whole).square().mean()
    contrast = (whole - whole.mean((1, 2), keepdim=True)).square().mean()
    if error > MAX_DIFFERENCE * contrast + 1e-3:
        raise Unprunable(
            "The tiles of a picture look unlike its last tile, which should be a thumbnail, so their arrangement is "
            "not known; keep use_thumbnail=True, or pass layout=VisualLayout(mask, grids) to prune()."
        )
