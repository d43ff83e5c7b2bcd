"""Bipartite matching: which tokens are most alike, found between two halves and without iteration (arXiv 2210.09461).

Plain tensors: knows neither where the vectors are from nor what is merged.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feathervlm.core.budget import check_fraction, kept
from feathervlm.core.encoder.base import EncoderMerging, encoder_layer
from feathervlm.core.errors import PruningError, Unprunable
from feathervlm.core.tensor_ops import stable_cosines, to_float64
from feathervlm.core.validation import check_encoder_layer


def bipartite(metric: Tensor, merges: int, protected: int = 0, window: Tensor | None = None) -> Tensor:
    """Where every token goes when the `merges` best matches become one token each.

    Tokens alternate between A (even) and B (odd). Each of A picks the most similar of B, by cosine, and those of A with
    the best picks go into them; several may go into one. Equals: the lower index. Behind it come the tokens left of A
    in their order, then those of B in theirs.

    Args:
        metric: (images, tokens, dim), what is compared.
        merges: how many tokens of an image leave, at most half of those that are not protected.
        protected: 1 if the first token ([CLS]) is to stay alone; it is of A, so that nothing goes into it anyway.
        window: long (tokens,), ascending: only tokens of one window merge, as many as can if these are fewer than
            `merges`, and the order behind is by window first. For a single image.

    Returns:
        long (images, tokens), places among the `tokens - merges` behind.

    >>> bipartite(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 0.9], [1.0, 0.1]]]), merges=1)
    tensor([[2, 1, 0, 2]])
    """
    images, tokens, _ = metric.shape
    everything = torch.ones(images, tokens, dtype=torch.bool, device=metric.device)
    unit = torch.nn.functional.normalize(to_float64(metric, everything), dim=-1)
    # In steps of 2**-23, so that cosines about zero are equal, too, whatever order their products are summed in.
    similar = (stable_cosines(unit[:, ::2], unit[:, 1::2]) * 2**23).round()  # (images, A, B)
    similar[:, :protected] = float("-inf")
    if window is not None:
        similar.masked_fill_(window[::2, None] != window[1::2], float("-inf"))
    best, target = similar.max(-1)
    if window is not None:
        merges = min(merges, int(best.isfinite().sum()))
    leaving = torch.sort(best, dim=1, descending=True, stable=True).indices[:, :merges]
    stays = torch.ones_like(target, dtype=torch.bool).scatter(1, leaving, False)
    left = target.shape[1] - merges
    place = torch.empty(images, tokens, dtype=torch.long, device=metric.device)
    place[:, ::2] = torch.where(stays, stays.cumsum(1) - 1, target + left)
    place[:, 1::2] = torch.arange(left, tokens - merges, device=metric.device)
    return place if window is None else _by_window(place, window, tokens - merges)


def _by_window(place: Tensor, window: Tensor, count: int) -> Tensor:
    """The same groups, (1, tokens), those of a window together."""
    order = torch.sort(window.new_zeros(count).scatter(0, place[0], window), stable=True).indices
    return torch.empty_like(order).scatter(0, order, torch.arange(count, device=order.device))[place]


@dataclass(frozen=True)
class BipartiteMerging(EncoderMerging):
    """Merge the most similar tokens a few at a time, by the keys of each layer (ToMe, arXiv 2210.09461).

    As many leave in every layer, but never more than half, and in the last what remains; see
    `feathervlm.core.encoder.bipartite`.

    Args:
        keep: fraction of the patches that is left in the end.
        start: first layer that merges, counted from the first (0) or from the last (-1), or a fraction of the depth.
        stop: last layer that merges, likewise. Behind -2 LLaVA takes its features.
        proportional: see `EncoderMerging`.
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
        layers = range(encoder_layer(self.start, depth), encoder_layer(self.stop, depth) + 1)
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
