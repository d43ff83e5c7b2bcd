"""The attention mask of a pruned layer, made from the mask of the unpruned sequence.

Rows and columns are gathered, so whatever the model put into its mask (windows, blocks, padding) holds for the present
tokens. A mask that was None stays None wherever that is right, which keeps the fastest kernels.
"""

import torch
from torch import Tensor

from feathervlm.core.errors import Unprunable


def pruned_mask(
    mask: object,
    rows: Tensor | None,
    query: Tensor,
    columns: Tensor,
    valid: Tensor | None,
    offset: int,
    attention: str,
    dtype: torch.dtype,
    causal: bool = True,
) -> Tensor | None:
    """Return the mask for some queries of a forward and the stored keys.

    Args:
        mask: The model's mask for the unpruned sequence: None, (batch, keys) or (batch, 1, queries, keys).
        rows: Rows of the forward that are present, long (batch, n); None if all are.
        query: Position of each query in the original sequence, long (batch or 1, n).
        columns: Position of each stored key, long (batch or 1, keys).
        valid: False on filler slots, bool (batch, keys); None if all slots are real.
        offset: Position that the mask's first column stands for.
        attention: Name of the attention implementation.
        dtype: Type of the additive mask where eager attention needs one.
        causal: Whether a query attends to nothing after it where the model's mask is None.

    Raises:
        Unprunable: On a kind of mask that is not supported.
    """
    if mask is None:
        if valid is None:
            return None
        if "flash" in attention:
            return valid
        before = query[:, :, None] >= columns[:, None, :]
        allowed = (before if causal else torch.ones_like(before)) & valid[:, None, :]
        return additive(allowed[:, None], dtype) if attention == "eager" else allowed[:, None]
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise Unprunable(
            f"An attention mask of type {type(mask).__name__} cannot be pruned; load the model with 'sdpa'."
        )
    local = columns.to(mask.device) - offset
    inside = (local >= 0) & (local < mask.shape[-1])
    if valid is not None:
        inside = inside & valid.to(mask.device)
    # take_along_dim does not check bounds on every device, so clamp and mark.
    local = local.clamp(0, mask.shape[-1] - 1)
    if mask.dim() == 2:
        return torch.take_along_dim(mask, local, dim=1).bool() & inside
    if rows is not None:
        mask = torch.take_along_dim(mask, rows.to(mask.device)[:, None, :, None], dim=2)
    mask = torch.take_along_dim(mask, local[:, None, None, :], dim=3)
    inside = inside[:, None, None, :]
    if mask.dtype == torch.bool:
        return mask & inside
    return torch.where(inside, mask, torch.finfo(mask.dtype).min)


def state_mask(mask: Tensor | None, rows: Tensor, valid: Tensor | None) -> Tensor | None:
    """Return the mask of a layer that carries a state along the sequence in place of keys.

    Args:
        mask: False on padding of the unpruned sequence, (batch, sequence); None if there is no padding.
        rows: Positions that are present, long (batch, n).
        valid: False on fillers, bool (batch, n); None if all rows are real.
    """
    if mask is None:
        return valid
    mask = torch.take_along_dim(mask, rows.to(mask.device), dim=1)
    return mask if valid is None else mask & valid.to(mask.device).to(mask.dtype)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask for True on keys that may be attended to."""
    return torch.where(allowed, torch.zeros((), dtype=dtype, device=allowed.device), torch.finfo(dtype).min)
