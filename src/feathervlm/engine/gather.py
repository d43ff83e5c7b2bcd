"""Gathering rows of tensors and of trees of tensors."""

from typing import Any

import torch
from torch import Tensor


def rows(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """`tensor` with the entries `index` (batch, n) taken along `dim`, -1 or -2; leading dims broadcast.

    >>> rows(torch.arange(6.).view(1, 3, 2), torch.tensor([[0, 2]]), -2).shape
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


def tree_rows(tree: Any, index: Tensor) -> Any:
    """`rows` along the sequence (dim -2) of every tensor in tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        return rows(tree, index, -2)
    if isinstance(tree, dict):
        return {key: tree_rows(value, index) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(tree_rows(value, index) for value in tree)
    return tree
