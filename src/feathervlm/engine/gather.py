"""Gathering rows of tensors, of trees of tensors, and slots of cached keys and values."""

from typing import Any

import torch
from torch import Tensor


def gather_rows(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Return the entries `index` (batch, n) of `tensor` along `dim`, -1 or -2; leading dimensions broadcast.

    >>> gather_rows(torch.arange(6.).view(1, 3, 2), torch.tensor([[0, 2]]), -2).shape
    torch.Size([1, 2, 2])
    """
    index = index.to(tensor.device)
    if dim == -2 and tensor.dim() == 3 and len(tensor) == len(index) == 1:
        return tensor.index_select(1, index[0])  # moves whole rows, thirty times as fast
    if dim == -2:
        index = index[..., None]
    while index.dim() < tensor.dim():
        index = index[None]
    return torch.take_along_dim(tensor, index, dim=dim)


def gather_tree(tree: Any, index: Tensor) -> Any:
    """Apply `gather_rows` along the sequence (dimension -2) to every tensor in tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return gather_rows(tree, index, -2)
    if isinstance(tree, dict):
        return {key: gather_tree(value, index) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(gather_tree(value, index) for value in tree)
    return tree


def tree_to(tree: Any, device: torch.device) -> Any:
    """Return tuples, lists and dicts of tensors on a device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: tree_to(value, device) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(tree_to(value, device) for value in tree)
    return tree


def gather_slots(states: Tensor, order: Tensor) -> Tensor:
    """Return the slots `order` (batch, n) of keys or values of shape (batch, heads, slots, dim)."""
    order = order.to(states.device)
    if len(order) == 1:
        return states.index_select(2, order[0])  # moves whole rows
    return torch.take_along_dim(states, order[:, None, :, None], 2)
