"""Bipartite matching: which tokens are most alike, found between two halves and without iteration (arXiv 2210.09461).

Plain tensors: knows neither where the vectors are from nor what is merged.
"""

import torch
from torch import Tensor

from feathervlm.core.images import cosines, widened


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
    unit = torch.nn.functional.normalize(widened(metric, everything), dim=-1)
    # In steps of 2**-23, so that cosines about zero are equal, too, whatever order their products are summed in.
    similar = (cosines(unit[:, ::2], unit[:, 1::2]) * 2**23).round()  # (images, A, B)
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
