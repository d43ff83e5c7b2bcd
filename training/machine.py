"""What this machine is good at: where to train, and in which type to multiply matrices."""

import os
from functools import cache

import torch


def best_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def helpers() -> int:
    """How many processes draw scenes while the GPU computes; none where the cores themselves do the computing."""
    return min(4, os.cpu_count() or 1) if torch.cuda.is_available() else 0


@cache
def product_type(kind: str) -> torch.dtype:
    """bfloat16 where the device ("cpu", "cuda") multiplies it directly, else float32.

    On a CPU that has to emulate it, bfloat16 takes several times as long as float32.
    """
    if kind != "cpu":
        return torch.bfloat16
    # Older torch does not tell what the CPU can do; float32 is right on any.
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32


def autocast(kind: str) -> torch.autocast:
    """Matrix products of this block in `product_type`."""
    low = product_type(kind)
    return torch.autocast(kind, torch.bfloat16, enabled=low is torch.bfloat16)
