"""Folding tokens: groups of them become one token each, and unfold again into copies of it.

Where tokens go is a `place`, long (images, tokens): the index of each in the shorter sequence behind. Tokens of one
place are a group. Plain tensors: knows neither why tokens go together nor which model they are from.
"""

import torch
from torch import Tensor


def merge_groups(states: Tensor, place: Tensor, count: int, sizes: Tensor) -> Tensor:
    """The mean of every group, weighted by size: (images, count, dim) of (images, tokens, dim), summed in float32.

    A group of one is left as it is to the last bit. On CUDA the order of a sum, and so its last bit, is open unless
    `torch.use_deterministic_algorithms(True)`.

    Args:
        states: (images, tokens, dim).
        place: long (images, tokens).
        count: groups of an image.
        sizes: (images, tokens), how many patches each token stands for.
    """
    images, _, dim = states.shape
    wide = torch.promote_types(states.dtype, torch.float32)
    shares = sizes / merged_sizes(sizes, place, count).gather(1, place)
    row = place + count * torch.arange(images, device=place.device)[:, None]
    parts = states.to(wide) * shares[..., None].to(wide)
    sums = parts.new_zeros(images * count, dim).index_add(0, row.flatten(), parts.flatten(0, 1))
    return sums.view(images, count, dim).to(states.dtype)


def merged_sizes(sizes: Tensor, place: Tensor, count: int) -> Tensor:
    """How many patches every group stands for: (images, count) of (images, tokens)."""
    return sizes.new_zeros(len(sizes), count).scatter_add(1, place, sizes)


def expand_groups(states: Tensor, place: Tensor) -> Tensor:
    """A copy of its group for every token: (images, tokens, dim) of (images, count, dim).

    >>> expand_groups(torch.tensor([[[5.0], [7.0]]]), torch.tensor([[1, 0, 1]]))[0, :, 0]
    tensor([7., 5., 7.])
    """
    return states.gather(1, place[..., None].expand(*place.shape, states.shape[-1]))


def first_of_each(place: Tensor, count: int) -> Tensor:
    """The first token of every group: long (images, count).

    >>> first_of_each(torch.tensor([[1, 0, 1, 0]]), 2)
    tensor([[1, 0]])
    """
    index = torch.arange(place.shape[1], device=place.device).expand_as(place)
    return torch.full_like(place, place.shape[1])[:, :count].scatter_reduce(1, place, index, "amin")


def is_first(place: Tensor, count: int) -> Tensor:
    """Which tokens are the first of their group: bool (images, tokens).

    >>> is_first(torch.tensor([[1, 0, 1, 0]]), 2)
    tensor([[ True,  True, False, False]])
    """
    index = torch.arange(place.shape[1], device=place.device).expand_as(place)
    return first_of_each(place, count).gather(1, place) == index
