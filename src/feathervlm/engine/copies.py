"""Whether tensors are the same, or copies on this or another device.

Modules that move their arguments (those that accelerate dispatches, data parallelism) hand on new objects, so what a
vision encoder returned is recognized by its features.
"""

from typing import Any

import torch
from torch import Tensor


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same or have equal content, for which it waits for the device if need be."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.is_meta or other.is_meta or torch.equal(one, other.to(one.device))


def same_tree(one: Any, other: Any) -> bool:
    """Return whether values are equal: tensors, numbers, and lists, tuples and dicts of these."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return same_tensor(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_tree(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_tree, one, other))
    return type(one) is type(other) and bool(one == other)
