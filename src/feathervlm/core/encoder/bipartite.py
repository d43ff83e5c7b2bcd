"""Bipartite matching (ToMe, arXiv 2210.09461): the most similar tokens, found between two halves without iteration."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feathervlm.core.budget import check_fraction, kept
from feathervlm.core.encoder.base import EncoderMerging, encoder_layer
from feathervlm.core.errors import Unprunable
from feathervlm.core.tensor_ops import stable_cosines, unit_vectors
from feathervlm.core.validation import check_bool, check_encoder_layer


def bipartite(metric: Tensor, merges: int, protected: int = 0, window: Tensor | None = None) -> Tensor:
    """Return the group of every token when the `merges` best matches become one token each.

    Tokens alternate between A (even) and B (odd). Each token of A picks the most similar one of B, by cosine, and the
    tokens of A with the best picks go into them; several may go into one. Of equal matches the lower index goes first.
    Groups are numbered in the order of the remaining tokens of A, then those of B.

    Args:
        metric: Tensor of shape (images, tokens, dim) that is compared.
        merges: Number of tokens of an image that leave, at most half of the unprotected ones.
        protected: 1 if the first token ([CLS]) is to stay single; it belongs to A, so that nothing goes into it.
        window: long tensor of shape (tokens,), ascending: only tokens of one window merge, as many as can if these are
            fewer than `merges`, and groups are numbered by window first. For a single image.

    Returns:
        Long tensor of shape (images, tokens) with values below `tokens - merges`.

    >>> bipartite(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 0.9], [1.0, 0.1]]]), merges=1)
    tensor([[2, 1, 0, 2]])
    """
    images, tokens, _ = metric.shape
    unit = unit_vectors(metric, torch.ones(images, tokens, dtype=torch.bool, device=metric.device))
    # In steps of 2**-23, so that cosines near zero are equal as well, whatever the order of summation.
    similar = (stable_cosines(unit[:, ::2], unit[:, 1::2]) * 2**23).round()  # (images, A, B)
    similar[:, :protected] = float("-inf")
    if window is not None:
        similar.masked_fill_(window[::2, None] != window[1::2], float("-inf"))
    best, target = similar.max(-1)
    if window is not None:
        merges = min(merges, int(best.isfinite().sum()))
    leaving = torch.sort(best, dim=1, descending=True, stable=True).indices[:, :merges]
    stays = torch.ones_like(target, dtype=torch.bool).scatter(1, leaving, False)
    remaining = target.shape[1] - merges
    group = torch.empty(images, tokens, dtype=torch.long, device=metric.device)
    group[:, ::2] = torch.where(stays, stays.cumsum(1) - 1, target + remaining)
    group[:, 1::2] = torch.arange(remaining, tokens - merges, device=metric.device)
    return group if window is None else _by_window(group, window, tokens - merges)


def _by_window(group: Tensor, window: Tensor, count: int) -> Tensor:
    """Return the same groups, (1, tokens), numbered by window first."""
    order = torch.sort(window.new_zeros(count).scatter(0, group[0], window), stable=True).indices
    return torch.empty_like(order).scatter(0, order, torch.arange(count, device=order.device))[group]


@dataclass(frozen=True)
class BipartiteMerging(EncoderMerging):
    """Merge the most similar tokens, a few in each layer, by the keys of the layer (ToMe, arXiv 2210.09461).

    Equally many tokens leave in every layer, at most half of them, and in the last layer the remainder; see
    `bipartite`.

    Args:
        keep: Fraction of the patches that remain in the end.
        start: First layer that merges, counted from the first (0) or from the last (-1), or a fraction of the depth.
        stop: Last layer that merges, likewise. LLaVA takes its features after layer -2.
        proportional: See `EncoderMerging`.
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
        check_bool(self.proportional, "proportional")

    def plan(self, depth: int, patches: int, placed: bool = False) -> dict[int, int]:
        layers = range(encoder_layer(self.start, depth), encoder_layer(self.stop, depth) + 1)
        if not layers:
            raise Unprunable(
                f"No layer of {depth} lies from start={self.start} to stop={self.stop}; change start or stop."
            )
        goal = kept(self.keep, patches)
        plans = (self._with(merges, layers, patches, goal) for merges in range(patches - goal + 1))
        plan = next((plan for plan in plans if min(plan.values(), default=patches) == goal), None)
        if plan is None:
            raise Unprunable(
                f"{patches} patches cannot be brought down to keep={self.keep} ({goal}) in {len(layers)} layers of the "
                "vision encoder, each of which merges at most half into others; keep more, or merge in more layers."
            )
        return plan

    @staticmethod
    def _with(merges: int, layers: Iterable[int], patches: int, goal: int) -> dict[int, int]:
        plan = {}
        for layer in layers:
            now = min(merges, patches // 2, patches - goal)
            patches -= now
            if now:
                plan[layer] = patches
        return plan

    def assign(
        self,
        compared: Tensor,
        count: int,
        protected: int,
        cells: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        return bipartite(compared, compared.shape[1] - protected - count, protected, window)
