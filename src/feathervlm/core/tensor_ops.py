"""Operations on tensors that several parts of the core share: sorting, budgets, unit vectors, density peaks."""

from collections.abc import Sequence

import torch
from torch import Tensor


def lexsort(keys: Sequence[Tensor], order: Tensor | None = None) -> Tensor:
    """Sort along rows by several keys, ascending and stable; the first key is the most significant.

    Args:
        keys: Tensors of shape (batch, n).
        order: long tensor of shape (batch, n), the order of elements whose keys are equal; by index if not given.

    Returns:
        Long tensor of shape (batch, n), the indices in sorted order.

    >>> lexsort([torch.tensor([[1, 0, 1]]), torch.tensor([[5, 6, 4]])])
    tensor([[1, 2, 0]])
    """
    if order is None:
        order = torch.arange(keys[0].shape[1], device=keys[0].device).expand_as(keys[0])
    for key in reversed(keys):  # sorts are stable, so the least significant key goes first
        order = order.gather(1, torch.sort(key.gather(1, order), dim=1, stable=True).indices)
    return order


def first_n(keys: Sequence[Tensor], pool: Tensor, count: Tensor) -> Tensor:
    """Return the `count` tokens of the pool that come first by `keys`; of equal tokens the lower index comes first.

    Args:
        keys: Tensors of shape (images, n), the most significant first, sorted ascending.
        pool: bool tensor of shape (images, n), the candidates.
        count: long tensor of shape (images,); an image whose pool is smaller returns its whole pool.

    Returns:
        Bool tensor of shape (images, n).
    """
    order = lexsort([(~pool).long(), *keys])
    rank = torch.arange(pool.shape[1], device=pool.device)
    return torch.zeros_like(pool).scatter(1, order, rank < count[:, None]) & pool


def reserve_first(pool: Tensor, first: Tensor, budget: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reserve the tokens `first` and return what remains to be chosen.

    Args:
        pool: bool tensor of shape (images, n), the candidates.
        first: bool tensor of shape (images, n), a subset of the pool that has precedence.
        budget: long tensor of shape (images,).

    Returns:
        (reserved, pool, count): the tokens that are kept in any case, the tokens to choose from, and how many of these
        to choose. Where `first` exceeds the budget nothing is reserved, and the choice is among `first`.
    """
    size = first.sum(1)
    exceeds = (size > budget)[:, None]
    reserved = first & ~exceeds
    return reserved, torch.where(exceeds, first, pool & ~first), torch.where(exceeds[:, 0], budget, budget - size)


def quantile(scores: Tensor, present: Tensor, share: float) -> Tensor:
    """Compute `torch.quantile` of the present scores of every image, linearly interpolated.

    Args:
        scores: Tensor of shape (images, n).
        present: bool tensor of shape (images, n).
        share: Quantile in [0, 1].

    Returns:
        Tensor of shape (images, 1); inf for an image without tokens.
    """
    ranked = scores.masked_fill(~present, float("inf")).sort(1).values
    place = (present.sum(1, keepdim=True) - 1).clamp(min=0) * share
    low, high = (ranked.gather(1, end.long()) for end in (place.floor(), place.ceil()))
    return torch.where(low == high, low, low + (high - low) * (place - place.floor()))


def seeded_uniform(like: Tensor, seed: int) -> Tensor:
    """Return random numbers in [0, 1) of the shape (batch, visual) of `like`, the same for every sample and batch."""
    # Drawn one by one in order, so that a wider batch extends the sequence instead of changing it.
    numbers = torch.rand(like.shape[1], generator=torch.Generator().manual_seed(seed))
    return numbers.to(like.device).expand(like.shape)


def to_float64(vectors: Tensor, present: Tensor) -> Tensor:
    """Convert vectors (..., dim) to float64 (float32 on MPS), with zeros where bool `present` (...) is False."""
    return vectors.to(widest_float(vectors)).masked_fill(~present.to(vectors.device)[..., None], 0)


def widest_float(like: Tensor) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no float64."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def unit_vectors(vectors: Tensor, present: Tensor) -> Tensor:
    """Scale vectors (..., dim) to length one in float64; zeros where bool `present` (...) is False."""
    return torch.nn.functional.normalize(to_float64(vectors, present), dim=-1)


def stable_cosines(vectors: Tensor, others: Tensor) -> Tensor:
    """Compute cosine similarities in float32.

    Of float64 unit vectors, equal pairs have equal results whatever the order in which a matrix product sums, so ties
    are the same ties in any batch.

    Args:
        vectors: Unit vectors of shape (images, n, dim).
        others: Unit vectors of shape (images, m, dim).

    Returns:
        Tensor of shape (images, n, m).
    """
    return (vectors @ others.transpose(-1, -2)).float()


def pairwise_distances(features: Tensor) -> Tensor:
    """Compute exact Euclidean distances, (batch, n, n), of features (batch, n, dim) from the differences of pairs."""
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")


def density_peaks(features: Tensor, members: Tensor, neighbors: int | Tensor) -> Tensor:
    """Score the `members` of every row by how much they are density peaks (DPC-kNN): density times distance.

    Args:
        features: Tensor of shape (batch, n, dim); tokens that are not members may hold any value.
        members: bool tensor of shape (batch, n).
        neighbors: k, the token itself included; an int, or a long tensor of shape (batch,).

    Returns:
        Scores of shape (batch, n), see `peak_scores`.
    """
    if not members.shape[1]:
        return features.new_zeros(members.shape)
    pair = members[:, :, None] & members[:, None, :]  # (batch, n, n)
    distance = (pairwise_distances(features) / features.shape[-1] ** 0.5).masked_fill(~pair, float("inf"))
    return peak_scores(distance, neighbors)


def peak_scores(distance: Tensor, neighbors: int | Tensor) -> Tensor:
    """Compute rho * delta, (batch, n): density times distance to the nearest denser token.

    Args:
        distance: Distances of all pairs, (batch, n, n); infinite between tokens that are not neighbours.
        neighbors: k, the token itself included; an int, or a long tensor of shape (batch,).
    """
    width = distance.shape[-1]
    most = width if isinstance(neighbors, Tensor) else min(neighbors, width)
    nearest = distance.topk(most, dim=-1, largest=False).values
    if isinstance(neighbors, Tensor):
        beyond = torch.arange(width, device=distance.device) >= neighbors[:, None]
        nearest = nearest.masked_fill(beyond[:, None], float("inf"))
    finite = nearest.isfinite()
    sparsity = nearest.square().masked_fill(~finite, 0).sum(-1) / finite.sum(-1).clamp(min=1)
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
