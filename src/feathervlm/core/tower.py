"""Merging inside the vision encoder: a tower says which of its layers merge patches, how many stay, and which go where.

Behind the last layer every patch gets the feature of its group, so whatever follows finds as many as ever. That some
of them are copies a stage of the language model may use (`OnePerGroup`). Knows neither hooks nor models.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feathervlm.core.algebra import ImageTokens, Selector
from feathervlm.core.bipartite import bipartite
from feathervlm.core.budget import check_fraction, kept
from feathervlm.core.candidates import Candidates
from feathervlm.core.criteria import check_encoder_layer, check_whole, encoder_layer_index, peaks
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.folding import firsts
from feathervlm.core.images import widened
from feathervlm.core.signals import Representatives, Signal


class Tower(ABC):
    """Base of what may happen inside the vision encoder: a frozen dataclass whose fields are its parameters.

    Attributes:
        compares: what `places` is given, (images, tokens, dim): the "states" that enter a layer, which are then merged
            before it; or its "keys", mean over heads, and its states are merged between its attention and its MLP.
        proportional: later layers attend to a token as often as it stands for patches: the log of that number is added
            to the logits of its key.
    """

    compares: ClassVar[Literal["states", "keys"]]
    proportional: bool

    @abstractmethod
    def plan(self, depth: int, patches: int, placed: bool = False) -> dict[int, int]:
        """The patches that are left of each image behind a merge, by layer of an encoder of `depth`, in order.

        Args:
            depth: layers of the encoder.
            patches: of an image.
            placed: whether `places` will be told where they are.

        Raises:
            Unprunable: if that depth, or that number of patches, does not allow it.
        """

    @abstractmethod
    def places(
        self,
        compared: Tensor,
        count: int,
        protected: int,
        where: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """Where every token goes: long (images, tokens), see `feathervlm.core.folding`.

        Args:
            compared: (images, tokens, dim), see `compares`.
            count: patches that are left.
            protected: tokens in front of the patches ([CLS]), which stay alone and in front.
            where: long (tokens, 2), row and column of each token of a single image; None for patches in raster order.
            window: long (tokens,), ascending, of a single image: only tokens of one window merge. What is left is in
                the order of windows, and more than `count` if these allow no fewer.
        """


@dataclass(frozen=True)
class Bipartite(Tower):
    """Merge the most similar tokens a few at a time, by the keys of each layer (ToMe, arXiv 2210.09461).

    As many leave in every layer, but never more than half, and in the last what remains; see
    `feathervlm.core.bipartite`.

    Args:
        keep: fraction of the patches that is left in the end.
        start: first layer that merges, counted from the first (0) or from the last (-1), or a fraction of the depth.
        stop: last layer that merges, likewise. Behind -2 LLaVA takes its features.
        proportional: see `Tower`.
    """

    compares: ClassVar[Literal["states", "keys"]] = "keys"

    keep: float = 0.5
    start: int | float = 0
    stop: int | float = -2
    proportional: bool = True

    def __post_init__(self) -> None:
        check_fraction(self.keep)
        check_encoder_layer(self.start, "start")
        check_encoder_layer(self.stop, "stop")
        if not isinstance(self.proportional, bool):
            raise PruningError(f"proportional={self.proportional!r} is neither true nor false.")

    def plan(self, depth: int, patches: int, placed: bool = False) -> dict[int, int]:
        """The smallest number of merges in each layer that gets there."""
        layers = range(_layer(self.start, depth), _layer(self.stop, depth) + 1)
        if not layers:
            raise Unprunable(f"No layer of {depth} is from {self.start} to {self.stop}; move start or stop.")
        goal = kept(self.keep, patches)
        plans = (self._with(merges, layers, patches, goal) for merges in range(patches - goal + 1))
        found = next((plan for plan in plans if min(plan.values(), default=patches) == goal), None)
        if found is None:
            raise Unprunable(
                f"{patches} patches cannot be brought down to keep={self.keep} ({goal}) in {len(layers)} layers of the "
                "vision encoder, each of which merges at most half into others; keep more, or merge in more layers."
            )
        return found

    @staticmethod
    def _with(merges: int, layers: Iterable[int], patches: int, goal: int) -> dict[int, int]:
        plan = {}
        for layer in layers:
            now = min(merges, patches // 2, patches - goal)
            patches -= now
            if now:
                plan[layer] = patches
        return plan

    def places(
        self,
        compared: Tensor,
        count: int,
        protected: int,
        where: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """The best matches of the layer."""
        return bipartite(compared, compared.shape[1] - protected - count, protected, window)


@dataclass(frozen=True)
class Anchors(Tower):
    """Merge patches into the density peaks of a picture, once (AiluRus, arXiv 2311.01197).

    The distance of a patch to another is that of their features, |z_i - z_j| / sqrt(dim), times a weight that grows
    from `locality` to 1 with the rank of the other by distance on the grid, over the `reach` nearest; those further
    away are no neighbours, nor are those of other windows. Peaks are those of `feathervlm.core.criteria.peaks`, of
    every window the highest before all others. A patch goes into its nearest anchor, or where there is none in reach
    into the nearest on the grid. Where an encoder does not say how its patches lie, pictures must be square.

    Args:
        layer: patches merge before this layer, counted from the first (0) or from the last (-1), or a fraction of the
            depth.
        keep: fraction of the patches that is left.
        neighbors: k of the density, the patch itself included.
        reach: how many patches around one count as its neighbours.
        locality: weight of the nearest of these, in (0, 1]; 1 is none.
        proportional: see `Tower`.
    """

    compares: ClassVar[Literal["states", "keys"]] = "states"

    layer: int | float = 1 / 12
    keep: float = 0.5
    neighbors: int = 5
    reach: int = 48
    locality: float = 0.5
    proportional: bool = False

    def __post_init__(self) -> None:
        check_encoder_layer(self.layer)
        check_fraction(self.keep)
        check_whole(self.neighbors, "neighbors")
        check_whole(self.reach, "reach")
        check_fraction(self.locality, "locality")
        if not isinstance(self.proportional, bool):
            raise PruningError(f"proportional={self.proportional!r} is neither true nor false.")

    def plan(self, depth: int, patches: int, placed: bool = False) -> dict[int, int]:
        """All at once."""
        if not placed and isqrt(patches) ** 2 != patches:
            raise Unprunable(f"{patches} patches are no square, and their distances on the grid are not known.")
        layer, left = _layer(self.layer, depth), kept(self.keep, patches)
        return {layer: left} if left < patches else {}

    def places(
        self,
        compared: Tensor,
        count: int,
        protected: int,
        where: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """Anchors in the order of the patches, and the others where their anchors are."""
        images, patches = len(compared), compared.shape[1] - protected
        everything = torch.ones(images, patches, dtype=torch.bool, device=compared.device)
        features = widened(compared[:, protected:], everything)
        grid = _apart(_square(patches, features.device) if where is None else where)
        # By a matrix product, several times as fast, which in float64 is exact enough but for zeros.
        apart = torch.cdist(features, features, compute_mode="use_mm_for_euclid_dist")
        apart.diagonal(dim1=1, dim2=2).zero_()
        distance = (apart / features.shape[-1] ** 0.5).float() * self._weights(grid)
        if window is not None:
            across = window[:, None] != window
            distance, grid = distance.masked_fill(across, float("inf")), grid.masked_fill(across, grid.max() + 1)
        best = torch.sort(peaks(distance, self.neighbors), dim=1, descending=True, stable=True).indices
        if window is not None:
            best, windows = _one_of_each(best, window)
            count = max(count, windows)
        anchor = best[:, :count].sort(1).values
        near = distance.gather(2, anchor[:, None].expand(-1, patches, -1))
        far = grid.expand_as(distance).gather(2, anchor[:, None].expand(-1, patches, -1))
        goes = torch.where(near.isfinite().any(-1), near.argmin(-1), far.argmin(-1))
        goes = goes.scatter(1, anchor, torch.arange(count, device=goes.device).expand_as(anchor))
        front = torch.arange(protected, device=goes.device).expand(images, -1)
        return torch.cat([front, goes + protected], 1)

    def _weights(self, grid: Tensor) -> Tensor:
        """What the distance of features is multiplied with, (patches, patches): infinite out of reach."""
        order = torch.sort(grid, dim=1, stable=True).indices
        rank = torch.arange(len(grid), device=grid.device).expand_as(order)
        rank = torch.zeros_like(order).scatter(1, order, rank)
        weight = self.locality + (1 - self.locality) * rank / self.reach
        return weight.masked_fill(rank > self.reach, float("inf"))


@dataclass(frozen=True)
class OnePerGroup(Selector):
    """Keep one visual token of every group that the vision encoder has merged, where its first patch is.

    The others hold copies of its feature. A token of several patches stays if one of them is the first of its group, so
    that of small groups hardly a token leaves.

    Args:
        keep: fraction of the patches that the vision encoder keeps, for planning.
    """

    keep: float

    def __post_init__(self) -> None:
        check_fraction(self.keep)

    def signals(self) -> Iterator[Signal]:
        """Which patches stand for their group."""
        yield Representatives()

    def select(self, tokens: Candidates) -> Tensor:
        """Tokens with a patch that stands for its group."""
        return tokens.present & (tokens.signals.read(Representatives()) > 0)

    def expected(self, image: ImageTokens) -> float:
        """As if every token were one patch."""
        return min(float(kept(self.keep, image.original)), image.current)


def _layer(layer: int | float, depth: int) -> int:
    """The 0-based layer of an encoder of `depth` layers."""
    index = encoder_layer_index(layer, depth)
    if not -depth <= index < depth:
        raise Unprunable(f"Layer {layer} is beyond the {depth} layers of this vision encoder.")
    return index % depth


def _square(patches: int, device: torch.device) -> Tensor:
    """Rows and columns in a square picture, in raster order: long (patches, 2)."""
    index = torch.arange(patches, device=device)
    return torch.stack([index // isqrt(patches), index % isqrt(patches)], 1)


def _apart(where: Tensor) -> Tensor:
    """Squared distances on the grid: long (patches, patches) of rows and columns (patches, 2)."""
    return (where[:, None] - where).square().sum(-1)


def _one_of_each(best: Tensor, window: Tensor) -> tuple[Tensor, int]:
    """Patches in the order of their scores, (1, patches), the best of every window before all others; and windows."""
    inside = window[best[0]]
    first = firsts(inside[None] - inside.min(), len(inside))[0]
    return best[:, torch.sort(first.long(), descending=True, stable=True).indices], int(first.sum())
