"""Devices and types of torch by their names on the command line."""

import torch

from feathervlm.core.errors import PruningError

DTYPES = ("auto", "stored", "float32", "bfloat16", "float16", "float64")


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the accelerator if there is one.

    Raises:
        PruningError: There is no such device on this machine.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    present = ["cpu"]
    if accelerator is not None:
        present += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in present:
        raise PruningError(f"There is no device {name!r} here; choose auto or one of {', '.join(present)}.")
    return torch.device(name)


def choose_dtype(name: str) -> torch.dtype | str:
    """Return the torch type of that name; `auto`, which transformers reads as the stored type, for `auto` and `stored`.

    Raises:
        PruningError: Models do not run in a type of that name.
    """
    if name not in DTYPES:
        raise PruningError(f"There is no dtype {name!r}; choose one of {', '.join(DTYPES)}.")
    return "auto" if name in ("auto", "stored") else getattr(torch, name)
