"""Merging where a vision encoder packs its pictures into one sequence and rotates by row and column: the Qwen family.

Pictures (a frame of a video is one) and in some layers of Qwen2.5-VL windows of them are segments, and attention stays
inside. So patches merge inside a segment of every later layer, segments stay in one piece, and only their bounds move.
A merged token is rotated as the first of its patches in the encoder's order. Knows no hooks.
"""

import inspect
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from feathervlm.core.encoder.base import EncoderMerging
from feathervlm.core.encoder.grouping import first_of_each
from feathervlm.core.errors import Unprunable
from feathervlm.engine.report.records import EncoderRun
from feathervlm.engine.vision.merge_state import MergeState

ARGUMENTS = {"cu_seqlens", "max_seqlen", "position_embeddings"}
"""Arguments of a layer that say where packed patches are."""


def packs(encoder: nn.Module) -> bool:
    """Whether an encoder packs pictures as Qwen2-VL's does, as blocks of patches each of which becomes a token."""
    given = "grid_thw" in inspect.signature(encoder.forward).parameters
    return given and hasattr(encoder, "merger") and isinstance(getattr(encoder, "spatial_merge_size", None), int)


class Packing:
    """How pictures lie in an encoder's sequence.

    Args:
        encoder: that packs them.
        depth: its layers.
        grid_thw: long (pictures or videos, 3), their frames, rows and columns of patches.

    Attributes:
        pictures: patches of each.
        grid: long (patches, 2), row and column of each.
        window: long (patches,), which window each is in, ascending.
        windowed: the layers whose attention stays inside windows.
    """

    def __init__(self, encoder: Any, depth: int, grid_thw: Tensor) -> None:
        block, grid_thw = encoder.spatial_merge_size, grid_thw.cpu()
        shapes = [(rows, cols) for frames, rows, cols in grid_thw.tolist() for _ in range(frames)]
        self.pictures = [rows * cols for rows, cols in shapes]
        self.grid = torch.cat([_blocks(rows, cols, block) for rows, cols in shapes])
        self.windowed: set[int] = set()
        self._bounds = self._windows = [0, *accumulate(self.pictures)]
        if hasattr(encoder, "window_size"):
            sizes = {"spatial_merge_size": block, "window_size": encoder.window_size, "patch_size": encoder.patch_size}
            order, windows = get_vision_window_index(grid_thw, **sizes)
            self.grid = self.grid.view(-1, block**2, 2)[order].flatten(0, 1)
            self._windows = windows.tolist()
            self.windowed = set(range(depth)) - set(encoder.fullatt_block_indexes)
        ends = torch.tensor(self._windows[1:])
        self.window = torch.bucketize(torch.arange(len(self.grid)), ends, right=True)

    def bounds(self, layer: int) -> list[int]:
        """Where the segments of a layer begin and end."""
        return self._windows if layer in self.windowed else self._bounds


class Packed(MergeState):
    """One run of such an encoder: its pictures are one row, and each has a plan of its own.

    Args:
        tower: what to merge.
        depth: layers of the encoder.
        rows: (1, patches, dim), what enters the first.
        packing: how the pictures lie in it.

    Raises:
        Unprunable: if pictures of these sizes cannot be merged, or are not all.
    """

    def __init__(self, tower: EncoderMerging, depth: int, rows: Tensor, packing: Packing) -> None:
        if rows.shape[1] != sum(packing.pictures):
            raise Unprunable(f"The vision encoder has {rows.shape[1]} patches for pictures of {packing.pictures}.")
        self.packing, self.left = packing, list(packing.pictures)
        super().__init__(tower, depth, rows, 0)
        self.grid, self.window = packing.grid.to(rows.device), packing.window.to(rows.device)
        self.first = self.source[0]
        self._checked: dict[tuple[int, bool], Any] = {}  # holds them, so that no other gets their id

    def _plan(self, depth: int, patches: int) -> None:
        by_size = {size: self.tower.plan(depth, size, placed=True) for size in dict.fromkeys(self.packing.pictures)}
        self.plans = [by_size[size] for size in self.packing.pictures]
        self.counts: list[list[int]] = []

    def merges(self, layer: int) -> bool:
        """Whether patches of some picture merge in a layer."""
        return any(layer in plan for plan in self.plans)

    def rows(self, states: Tensor) -> Tensor:
        """The encoder's states as (1, tokens, dim)."""
        return states[None]

    def back(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows[0]

    def enter(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """As for any run; with the bounds of what is left, and its rotations.

        `max_seqlen` stays: flash attention takes it for an upper bound.
        """
        kwargs = super().enter(layer, kwargs)
        if not self.merged:
            return kwargs
        bounds = kwargs["cu_seqlens"]
        now = torch.searchsorted(self.first.sort().values, bounds.to(self.first))
        rotations = tuple(table[self.first] for table in kwargs["position_embeddings"])
        return {**kwargs, "cu_seqlens": now.to(bounds), "position_embeddings": rotations}

    def check(self, layer: int, kwargs: dict[str, Any]) -> None:
        """Segments and rotations must be those that were foreseen; each tensor is looked at once."""
        bounds, tables = kwargs.get("cu_seqlens"), kwargs.get("position_embeddings")
        key = id(bounds), layer in self.packing.windowed
        if key in self._checked:
            return
        fits = isinstance(bounds, Tensor) and bounds.tolist() == self.packing.bounds(layer)
        if not fits or not isinstance(tables, tuple) or {len(table) for table in tables} != {self.source.shape[1]}:
            raise Unprunable(
                f"Layer {layer} of the vision encoder looks at other parts of the pictures than those of Qwen's; "
                "choose a method that does not merge inside it."
            )
        self._checked[key] = bounds

    def count(self) -> None:
        """Take down how many tokens of every picture enter a layer."""
        self.counts.append(list(self.left))

    def find(self, layer: int, compared: Tensor) -> tuple[Tensor, int]:
        """As for any run: picture by picture, each as often as its plan says or as its windows allow."""
        # Merging by keys is behind the layer's own attention, merging by states in front of it.
        later = layer + (self.tower.compares == "keys")
        window = self.window[self.first]
        if later > max(self.packing.windowed, default=-1):
            window = torch.zeros_like(window)
        parts = (part.split(self.left) for part in (compared[0], window, self.grid[self.first]))
        places, end = [], 0
        for picture, (plan, vectors, inside, where) in enumerate(zip(self.plans, *parts, strict=True)):
            place = torch.arange(len(vectors), device=vectors.device)
            if layer in plan:
                place = self.tower.assign(vectors[None], plan[layer], 0, where, inside)[0]
                self.left[picture] = int(place.max()) + 1
            places.append(place + end)
            end += self.left[picture]
        return torch.cat(places)[None], end

    def fold(self, rows: Tensor, place: Tensor, count: int) -> Tensor:
        """Merge, for good: (1, count, dim)."""
        folded = super().fold(rows, place, count)
        self.first = first_of_each(self.source, count)[0]
        return folded

    def records(self) -> list[EncoderRun]:
        """For the report: a run of each picture."""
        by_picture = zip(*self.counts, strict=True)
        return [EncoderRun(size, list(seen)) for size, seen in zip(self.packing.pictures, by_picture, strict=True)]


def _blocks(rows: int, cols: int, block: int) -> Tensor:
    """Rows and columns of a picture's patches, block after block in raster order: long (patches, 2)."""
    index = torch.arange(rows * cols).view(rows // block, block, cols // block, block).transpose(1, 2).flatten()
    return torch.stack([index // cols, index % cols], 1)
