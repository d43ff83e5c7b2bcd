"""What memory was really used: the peak of a piece of work, and the bytes that a KV cache holds on to.

Knows devices and storages; knows nothing of models and methods.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
PROCESS = Path("/proc/self")


def kv_bytes(cache: Any) -> int:
    """Bytes of the storages that keys and values lie in.

    Each storage counts once and as a whole, so that a short view of a long tensor counts as what it keeps alive.
    """
    storages = {}
    for layer in cache.layers:
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak(device: torch.device, work: Callable[[], T]) -> tuple[int | None, T]:
    """The bytes by which memory in use grew at most during `work`, and its result; None where that cannot be told.

    On CUDA those that torch allocated; on Linux the growth of the process's resident memory, by the kernel's own
    high-water mark, after giving back what had been freed before.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    start = _reset() if device.type == "cpu" else None
    result = work()
    high = None if start is None else _status("VmHWM")
    return None if start is None or high is None else max(high - start, 0), result


def _reset() -> int | None:
    """Start the high-water mark anew, at what is resident now."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(name: str) -> int | None:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
