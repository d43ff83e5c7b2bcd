"""Chooses the device for training and the type of matrix products."""

import os
from functools import cache

import torch


def best_device() -> torch.device:
    """Return a GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def helpers() -> int:
    """Return the number of processes that draw scenes while a GPU computes; 0 if the CPU computes."""
    return min(4, os.cpu_count() or 1) if torch.cuda.is_available() else 0


@cache
def product_type(kind: str) -> torch.dtype:
    """Return bfloat16 if the device ("cpu", "cuda") has instructions for it, else float32.

    On a CPU that has to emulate it, bfloat16 takes several times as long as float32.
    """
    if kind != "cpu":
        return torch.bfloat16
    # Older torch does not report the CPU's instructions; float32 works everywhere.
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32


def autocast(kind: str) -> torch.autocast:
    """Return a context in which matrix products are computed in `product_type`."""
    low = product_type(kind)
    return torch.autocast(kind, torch.bfloat16, enabled=low is torch.bfloat16)
