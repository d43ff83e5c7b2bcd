"""Merging groups of tokens into one token each, and expanding them again.

The assignment `group`, long (images, tokens), holds for each token the index of its group in the shorter sequence.
"""

import torch
from torch import Tensor


def merge_groups(states: Tensor, group: Tensor, count: int, sizes: Tensor) -> Tensor:
    """Compute the mean of every group, weighted by size and summed in float32: (images, count, dim).

    A group of one token is unchanged to the last bit. On CUDA the order of a sum, and so its last bit, is undefined
    unless `torch.use_deterministic_algorithms(True)` is set.

    Args:
        states: Tensor of shape (images, tokens, dim).
        group: long tensor of shape (images, tokens).
        count: Number of groups of an image.
        sizes: Tensor of shape (images, tokens), the number of patches that each token stands for.
    """
    images, _, dim = states.shape
    wide = torch.promote_types(states.dtype, torch.float32)
    shares = sizes / merged_sizes(sizes, group, count).gather(1, group)
    row = group + count * torch.arange(images, device=group.device)[:, None]
    parts = states.to(wide) * shares[..., None].to(wide)
    sums = parts.new_zeros(images * count, dim).index_add(0, row.flatten(), parts.flatten(0, 1))
    return sums.view(images, count, dim).to(states.dtype)


def merged_sizes(sizes: Tensor, group: Tensor, count: int) -> Tensor:
    """Return the number of patches that every group stands for, (images, count), from sizes (images, tokens)."""
    return sizes.new_zeros(len(sizes), count).scatter_add(1, group, sizes)


def expand_groups(states: Tensor, group: Tensor) -> Tensor:
    """Copy the state of its group to every token: (images, tokens, dim) from (images, count, dim).

    >>> expand_groups(torch.tensor([[[5.0], [7.0]]]), torch.tensor([[1, 0, 1]]))[0, :, 0]
    tensor([7., 5., 7.])
    """
    return states.gather(1, group[..., None].expand(*group.shape, states.shape[-1]))


def first_of_each(group: Tensor, count: int) -> Tensor:
    """Return the index of the first token of every group: long (images, count).

    >>> first_of_each(torch.tensor([[1, 0, 1, 0]]), 2)
    tensor([[1, 0]])
    """
    index = torch.arange(group.shape[1], device=group.device).expand_as(group)
    return torch.full_like(group, group.shape[1])[:, :count].scatter_reduce(1, group, index, "amin")


def is_first(group: Tensor, count: int) -> Tensor:
    """Mark the tokens that are the first of their group: bool (images, tokens).

    >>> is_first(torch.tensor([[1, 0, 1, 0]]), 2)
    tensor([[ True,  True, False, False]])
    """
    index = torch.arange(group.shape[1], device=group.device).expand_as(group)
    return first_of_each(group, count).gather(1, group) == index
