"""LFM2-VL: a small picture at its own shape; a large one in equal tiles, then a thumbnail of its own shape.

Pictures come as rows of flattened patches, `spatial_shapes` holds (rows, cols) of each. How tiles lie is told by the
thumbnail, which shows the same picture. Most decoder layers are short convolutions, which run over the tokens that are
left; only layers of full attention can score, so a criterion reads the nearest one before its stage.
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

UNLIKE = 0.25
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
        """A sketch of every tile, put together from its patches: (tiles, channels, 8, 8)."""
        patch = self.model.config.vision_config.patch_size
        patches = arguments["pixel_values"].unflatten(-1, (patch, patch, -1))
        shapes = arguments["spatial_shapes"].tolist()
        return torch.cat([sketch(_whole(tile, *shape)) for tile, shape in zip(patches, shapes, strict=True)])

    def runs(self, visual: VisualInput, call: ModelCall) -> list[PlaceholderRun]:
        """One grid per small picture; tiles and thumbnail per large one."""
        factor = self.model.config.downsample_factor
        shapes = [(rows // factor, cols // factor) for rows, cols in visual.given["spatial_shapes"].tolist()]
        seen = visual.facts if visual.output is not None else self.look(visual.modality, visual.given)
        parts: list[list[Shape]] = []
        rest = shapes
        for ids in prompts(call, visual):
            for length in lengths(spans_of(ids, self.token("image"))):
                count = _entries(rest, length)
                parts.append(rest[:count])
                rest = rest[count:]
        if rest:
            raise PruningError(f"The prompt has no placeholders for {len(rest)} of {len(shapes)} tiles; {REMEDY}")
        sketches = list(seen.split([len(part) for part in parts]))
        found = arrangements(sketches)
        for tiles, shape in zip(sketches, found, strict=True):
            if len(tiles) > 1:
                _check_likeness(tiles, *shape)
        return [_run(part, *shape) for part, shape in zip(parts, found, strict=True)]

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """The tower's last layer, tile after tile, merged."""
        factor = self.model.config.downsample_factor
        shapes = [(rows // factor, cols // factor) for rows, cols in visual.given["spatial_shapes"].tolist()]
        return torch.cat(
            [
                merge_blocks(states[: rows * cols * factor**2], 1, rows, cols, factor)
                for states, (rows, cols) in zip(output.last_hidden_state, shapes, strict=True)
            ]
        )


def lengths(spans: Sequence[Span]) -> list[int]:
    """Placeholders of every picture: tiles of one picture have exactly one mark between them."""
    found: list[int] = []
    end = None
    for start, length in spans:
        if end is not None and start == end + 1:
            found[-1] += length
        else:
            found.append(length)
        end = start + length
    return found


def _entries(shapes: Sequence[Shape], length: int) -> int:
    """How many of the next tiles make so many tokens."""
    tokens, count = 0, 0
    while tokens < length and count < len(shapes):
        tokens += shapes[count][0] * shapes[count][1]
        count += 1
    if tokens != length:
        raise PruningError(f"A picture has {length} placeholders but its tiles make {tokens} tokens; {REMEDY}")
    return count


def _run(parts: Sequence[Shape], rows: int, cols: int) -> PlaceholderRun:
    *tiles, whole = parts
    if not tiles:
        return grid(*whole)
    high, wide = tiles[0]
    return PlaceholderRun((Plane((1, rows * high, cols * wide), tiles=(rows, cols)), Plane((1, *whole))))


def _whole(patches: Tensor, rows: int, cols: int) -> Tensor:
    """(1, channels, height, width) from its patches and what fills up the batch: (patches, high, wide, channels)."""
    picture = patches[: rows * cols].unflatten(0, (rows, cols))
    return picture.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)[None]


def _check_likeness(tiles: Tensor, rows: int, cols: int) -> None:
    whole = tiles[-1]
    error = (mosaic(tiles[:-1], rows, cols) - whole).square().mean()
    contrast = (whole - whole.mean((1, 2), keepdim=True)).square().mean()
    if error > UNLIKE * contrast + 1e-3:
        raise Unprunable(
            "A picture's tiles look unlike its last one, which should be a thumbnail, so how they lie cannot be told; "
            "leave use_thumbnail=True, or tell prune() with layout=VisualLayout(mask, grids)."
        )
