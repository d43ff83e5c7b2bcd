"""Samples that were packed into one row: found from whatever keeps them apart.

Trainers mark the borders between samples by cumulative lengths (`cu_seq_lens_q`), an index of the sequence (`seq_idx`),
a 4-D mask of blocks, a 2-D mask that numbers the samples, or positions that begin again.
"""

from typing import Any

import torch
from torch import Tensor

from feathervlm.engine.call import ModelCall

CUMULATIVE = "cu_seq"
"""How the names of cumulative lengths begin: `cu_seq_lens_q`, `cu_seqlens`, ..."""

SAMPLE_NUMBERS = ("seq_idx",)
"""Names of the arguments that number the sample of every position."""


def full_mask(mask: Any) -> Any:
    """Return the mask of layers with full attention, where a call has one mask for every kind of layer."""
    return mask.get("full_attention") if isinstance(mask, dict) else mask


def block_mask(call: ModelCall) -> Tensor | None:
    """Return the 4-D mask of a call as bool (batch or 1, sequence, sequence); None if it has none of that shape."""
    mask = full_mask(call.arguments.get("attention_mask"))
    sequence = call.shape[1]
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[2:] != (sequence, sequence):
        return None
    mask = mask[:, 0]
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()


def attended_of(call: ModelCall, device: torch.device) -> Tensor | None:
    """Return False on padding, bool (batch, sequence); None if there is no padding or it is not known."""
    (batch, sequence), mask = call.shape, full_mask(call.arguments.get("attention_mask"))
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask[:, -sequence:].to(device).bool()
    blocks = block_mask(call)
    return None if blocks is None else blocks.diagonal(dim1=1, dim2=2).to(device).expand(batch, -1)


def packed_samples(call: ModelCall, attended: Tensor | None, device: torch.device) -> Tensor | None:
    """Return the number of the sample that every position belongs to, long (batch, sequence); None if none is packed.

    Args:
        call: The call.
        attended: False on padding, bool (batch, sequence); None if there is no padding.
        device: Device of the result.
    """
    begins = _borders(call)
    if begins is None:
        return None
    begins = torch.nn.functional.pad(begins.to(device), (1, 0)).expand(call.shape[0], -1)
    if attended is not None:
        begins = begins & attended & torch.nn.functional.pad(attended[:, :-1], (1, 0))
    return begins.cumsum(1) if bool(begins.any()) else None


def _borders(call: ModelCall) -> Tensor | None:
    """Return where a sample begins, from position 1 on: bool (batch or 1, sequence - 1); None if nothing tells."""
    arguments, sequence = call.arguments, call.shape[1]
    for name, value in arguments.items():
        if name.startswith(CUMULATIVE) and isinstance(value, Tensor) and value.dim() == 1:
            places = torch.arange(1, sequence, device=value.device)
            return torch.isin(places, value)[None]
    for name in SAMPLE_NUMBERS:
        numbers = arguments.get(name)
        if isinstance(numbers, Tensor) and numbers.shape[-1] == sequence:
            return numbers.view(-1, sequence).diff() != 0
    mask, ids = arguments.get("attention_mask"), arguments.get("position_ids")
    blocks = block_mask(call)
    if blocks is not None:
        return ~blocks.diagonal(-1, dim1=1, dim2=2)  # whether a token sees the one before it
    restarts = None
    if isinstance(ids, Tensor) and ids.shape[-1] == sequence:
        restarts = _restarts(ids, gaps=mask is None and arguments.get("use_cache") is False)
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == sequence:
        if restarts is None and call.labels is None:
            return None  # an ordinary prompt, for which the device is not asked
        numbered = mask.long().diff() != 0
        return numbered if restarts is None else numbered | restarts
    return restarts


def _restarts(ids: Tensor, gaps: bool) -> Tensor:
    """Return where positions begin again: where they fall back to the smallest of the row.

    Args:
        ids: Positions (batch, sequence), or (3 or 4, batch, sequence) where those of images have three dimensions; of
            four the first is that of text.
        gaps: Whether text also begins wherever it does not go on by one, as it does in transformers without a mask and
            without a cache.
    """
    text = ids[0] if ids.dim() == 3 else ids
    if gaps and (ids.dim() == 2 or len(ids) == 4):  # three dimensions repeat inside an image and leave gaps after it
        return text.diff() != 1
    return (text.diff() < 0) & (text[:, 1:] <= text.amin(1, keepdim=True))
