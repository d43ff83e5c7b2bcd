"""Memory that was really used: the peak of a piece of work, and the bytes that a KV cache keeps alive."""

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
    """Return the bytes of the storages of all keys and values.

    Each storage counts once and as a whole, so that a short view of a long tensor counts as all the bytes it keeps
    alive.
    """
    storages = {}
    for layer in cache.layers:
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak(device: torch.device, work: Callable[[], T]) -> tuple[int | None, T]:
    """Return by how many bytes memory in use grew at most during `work`, and the result of `work`.

    On CUDA, the bytes are those that torch allocated. On Linux, they are the growth of the process's resident memory by
    the kernel's own high-water mark, after freed memory was returned to the system. Elsewhere they are None.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    start = _reset_peak() if device.type == "cpu" else None
    result = work()
    highest = None if start is None else _status("VmHWM")
    return None if start is None or highest is None else max(highest - start, 0), result


def _reset_peak() -> int | None:
    """Reset the high-water mark to the resident memory, and return that; None if the system cannot do it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(name: str) -> int | None:
    """Return an entry of the process's status in bytes."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
