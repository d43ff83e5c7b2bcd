"""Operations on tensors that several parts of the core share."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ordered(keys: Sequence[Tensor], order: Tensor | None = None) -> Tensor:
    """Order by the first key, then the second, ..., ascending; equals stay in `order`, by default that of the indices.

    Args:
        keys: (batch, n) each.
        order: long (batch, n).

    Returns:
        long (batch, n), indices in order.

    >>> ordered([torch.tensor([[1, 0, 1]]), torch.tensor([[5, 6, 4]])])
    tensor([[1, 2, 0]])
    """
    if order is None:
        order = torch.arange(keys[0].shape[1], device=keys[0].device).expand_as(keys[0])
    for key in reversed(keys):  # stable sorts, so the least significant key goes first
        order = order.gather(1, torch.sort(key.gather(1, order), dim=1, stable=True).indices)
    return order


def draws(like: Tensor, seed: int) -> Tensor:
    """Random numbers in [0, 1) for tokens (batch, visual), the same for every sample and in any batch."""
    # Drawn one by one in order, so a wider batch extends the sequence instead of changing it.
    numbers = torch.rand(like.shape[1], generator=torch.Generator().manual_seed(seed))
    return numbers.to(like.device).expand(like.shape)


def density_peaks(features: Tensor, members: Tensor, neighbors: int | Tensor) -> Tensor:
    """rho * delta of the `members` (batch, visual) among themselves, from features (batch, visual, dim).

    Args:
        features: absent tokens may hold anything.
        members: bool.
        neighbors: k, itself included, or one for each row, long (batch,).
    """
    if not members.shape[1]:
        return features.new_zeros(members.shape)
    pair = members[:, :, None] & members[:, None, :]  # (batch, visual, visual)
    distance = (distances(features) / features.shape[-1] ** 0.5).masked_fill(~pair, float("inf"))
    return peaks(distance, neighbors)


def peaks(distance: Tensor, neighbors: int | Tensor) -> Tensor:
    """rho * delta, (batch, n), from the distance of each token to all others; infinite where they are no neighbours.

    Args:
        distance: (batch, n, n).
        neighbors: k, itself included, or one for each row, long (batch,).
    """
    width = distance.shape[-1]
    most = width if isinstance(neighbors, Tensor) else min(neighbors, width)
    nearest = distance.topk(most, dim=-1, largest=False).values
    if isinstance(neighbors, Tensor):
        beyond = torch.arange(width, device=distance.device) >= neighbors[:, None]
        nearest = nearest.masked_fill(beyond[:, None], float("inf"))
    found = nearest.isfinite()
    sparsity = nearest.square().masked_fill(~found, 0).sum(-1) / found.sum(-1).clamp(min=1)
    index = torch.arange(distance.shape[1], device=distance.device)
    # Compare exponents, not exponentials, which underflow to equal zeros far from everything.
    denser = (sparsity[:, None, :] < sparsity[:, :, None]) | (
        (sparsity[:, None, :] == sparsity[:, :, None]) & (index[None, :] < index[:, None])
    )
    to_denser = distance.masked_fill(~denser, float("inf")).amin(-1)
    widest = distance.masked_fill(~distance.isfinite(), 0).amax((1, 2))
    delta = torch.where(to_denser.isfinite(), to_denser, widest[:, None])
    scores: Tensor = (-sparsity).exp() * delta
    return scores


def distances(features: Tensor) -> Tensor:
    """Euclidean distances of all pairs, (batch, visual, visual): each from its own differences, so that it is exact."""
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")


def widened(vectors: Tensor, present: Tensor) -> Tensor:
    """Vectors (..., dim) in float64 where the device has it, zeros where bool `present` (...) is False."""
    wide = torch.float32 if vectors.device.type == "mps" else torch.float64
    return vectors.to(wide).masked_fill(~present.to(vectors.device)[..., None], 0)  # absent ones may hold anything


def cosines(directions: Tensor, others: Tensor) -> Tensor:
    """Cosine similarities in float32.

    Args:
        directions: (images, n, dim) of length one.
        others: (images, m, dim) of length one.

    Returns:
        (images, n, m).
    """
    return (directions @ others.transpose(-1, -2)).float()


def split(pool: Tensor, first: Tensor, budget: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is left to choose when some tokens come `first`.

    Args:
        pool: bool (images, n), the candidates.
        first: bool (images, n), a subset.
        budget: long (images,).

    Returns:
        (held, pool, wanted): the tokens that stay for certain, those to choose from, and how many of these. Where
        `first` exceeds the budget nothing is certain, and the choice is among them.
    """
    count = first.sum(1)
    over = (count > budget)[:, None]
    held = first & ~over
    return held, torch.where(over, first, pool & ~first), torch.where(over[:, 0], budget, budget - count)


def best(keys: list[Tensor], pool: Tensor, wanted: Tensor) -> Tensor:
    """The `wanted` tokens of the pool that come first by `keys`, ascending; of equals the lower index.

    Args:
        keys: (images, n) each, the most significant first.
        pool: bool (images, n).
        wanted: long (images,); where the pool has fewer, all of it.

    Returns:
        bool (images, n).
    """
    order = ordered([(~pool).long(), *keys])
    rank = torch.arange(pool.shape[1], device=pool.device)
    return torch.zeros_like(pool).scatter(1, order, rank < wanted[:, None]) & pool


def quantile(scores: Tensor, present: Tensor, share: float) -> Tensor:
    """`torch.quantile` of the present scores of every image, linearly interpolated.

    Args:
        scores: (images, n).
        present: bool (images, n).
        share: in [0, 1].

    Returns:
        (images, 1); inf for an image without tokens.
    """
    ranked = scores.masked_fill(~present, float("inf")).sort(1).values
    place = (present.sum(1, keepdim=True) - 1).clamp(min=0) * share
    low, high = (ranked.gather(1, end.long()) for end in (place.floor(), place.ceil()))
    return torch.where(low == high, low, low + (high - low) * (place - place.floor()))
