"""Merging in a vision encoder that packs its pictures into one sequence and rotates by row and column.

Attention stays inside segments: pictures (a frame of a video is one) and, in some layers of some encoders, windows of
them. So patches merge inside a segment of every later layer, segments stay contiguous, and only their bounds move. A
merged token is rotated as the first of its patches in the encoder's order.
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
"""Names of a layer's arguments that describe where packed patches are."""


def packs(encoder: nn.Module) -> bool:
    """Return whether an encoder packs pictures, as blocks of patches that each become a token (as Qwen2-VL's)."""
    has_grids = "grid_thw" in inspect.signature(encoder.forward).parameters
    return has_grids and hasattr(encoder, "merger") and isinstance(getattr(encoder, "spatial_merge_size", None), int)


class Packing:
    """The places of pictures in an encoder's sequence.

    Args:
        encoder: The encoder that packs them.
        depth: Number of its layers.
        grid_thw: Frames, rows and columns of patches, long (pictures or videos, 3).

    Attributes:
        pictures: Number of patches of each picture.
        grid: Row and column of each patch, long (patches, 2).
        window: Window of each patch, long (patches,), ascending.
        windowed: Indices of the layers whose attention stays inside windows.
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
        """Return the bounds of the segments of a layer."""
        return self._windows if layer in self.windowed else self._bounds


class Packed(MergeState):
    """The state of one run of such an encoder, whose pictures are one row and have a plan each.

    Args:
        merging: The merging to apply.
        depth: Number of layers of the encoder.
        rows: States that enter the first layer, of shape (1, patches, dim).
        packing: The places of the pictures.

    Raises:
        Unprunable: If pictures of these sizes cannot be merged, or do not add up to the patches.
    """

    def __init__(self, merging: EncoderMerging, depth: int, rows: Tensor, packing: Packing) -> None:
        if rows.shape[1] != sum(packing.pictures):
            raise Unprunable(f"The vision encoder has {rows.shape[1]} patches for pictures of {packing.pictures}.")
        self.packing, self.remaining = packing, list(packing.pictures)
        super().__init__(merging, depth, rows, 0)
        self.grid, self.window = packing.grid.to(rows.device), packing.window.to(rows.device)
        self.first = self.source[0]
        self._checked: dict[tuple[int, bool], Any] = {}  # references keep the ids unique

    def _plan(self, depth: int, patches: int) -> None:
        by_size = {size: self.merging.plan(depth, size, placed=True) for size in dict.fromkeys(self.packing.pictures)}
        self.plans = [by_size[size] for size in self.packing.pictures]
        self.counts: list[list[int]] = []

    def merges(self, layer: int) -> bool:
        return any(layer in plan for plan in self.plans)

    def move(self, device: torch.device) -> None:
        super().move(device)
        self.grid, self.window, self.first = self.grid.to(device), self.window.to(device), self.first.to(device)

    def rows(self, states: Tensor) -> Tensor:
        return super().rows(states)[None]

    def back(self, rows: Tensor) -> Tensor:
        return rows[0]

    def enter(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Begin a layer and return its arguments with the bounds and rotations of the current tokens.

        `max_seqlen` stays, for flash attention uses it as an upper bound.
        """
        kwargs = super().enter(layer, kwargs)
        if not self.merged:
            return kwargs
        bounds = kwargs["cu_seqlens"]
        now = torch.searchsorted(self.first.sort().values, bounds.to(self.first))
        rotations = tuple(table[self.first.to(table.device)] for table in kwargs["position_embeddings"])
        return {**kwargs, "cu_seqlens": now.to(bounds), "position_embeddings": rotations}

    def check(self, layer: int, kwargs: dict[str, Any]) -> None:
        """Raise `Unprunable` if segments or rotations are not the expected ones; each tensor is read once."""
        bounds, tables = kwargs.get("cu_seqlens"), kwargs.get("position_embeddings")
        key = id(bounds), layer in self.packing.windowed
        if key in self._checked:
            return
        fits = isinstance(bounds, Tensor) and bounds.tolist() == self.packing.bounds(layer)
        if not fits or not isinstance(tables, tuple) or {len(table) for table in tables} != {self.source.shape[1]}:
            raise Unprunable(
                f"Layer {layer} of the vision encoder attends to parts of the pictures that are not known; "
                "choose a method that does not merge inside it."
            )
        self._checked[key] = bounds

    def count(self) -> None:
        """Record how many tokens of every picture enter a layer."""
        self.counts.append(list(self.remaining))

    def find(self, layer: int, compared: Tensor) -> tuple[Tensor, int]:
        """Return where tokens go, picture by picture, as many merges as its plan demands and its windows allow."""
        self.move(compared.device)
        # Merging by keys comes after the layer's own attention, merging by states before it.
        later = layer + (self.merging.compares == "keys")
        window = self.window[self.first]
        if later > max(self.packing.windowed, default=-1):
            window = torch.zeros_like(window)
        parts = (part.split(self.remaining) for part in (compared[0], window, self.grid[self.first]))
        places, end = [], 0
        for picture, (plan, vectors, inside, where) in enumerate(zip(self.plans, *parts, strict=True)):
            place = torch.arange(len(vectors), device=vectors.device)
            if layer in plan:
                place = self.merging.assign(vectors[None], plan[layer], 0, where, inside)[0]
                self.remaining[picture] = int(place.max()) + 1
            places.append(place + end)
            end += self.remaining[picture]
        return torch.cat(places)[None], end

    def merge(self, rows: Tensor, place: Tensor, count: int) -> Tensor:
        """Merge the tokens and keep the result: states of shape (1, count, dim)."""
        merged = super().merge(rows, place, count)
        self.first = first_of_each(self.source, count)[0]
        return merged

    def records(self) -> list[EncoderRun]:
        """Return a run of each picture for the report."""
        by_picture = zip(*self.counts, strict=True)
        return [EncoderRun(size, list(seen)) for size, seen in zip(self.packing.pictures, by_picture, strict=True)]


def _blocks(rows: int, cols: int, block: int) -> Tensor:
    """Return row and column of a picture's patches, block after block in raster order: long (patches, 2)."""
    index = torch.arange(rows * cols).view(rows // block, block, cols // block, block).transpose(1, 2).flatten()
    return torch.stack([index // cols, index % cols], 1)
