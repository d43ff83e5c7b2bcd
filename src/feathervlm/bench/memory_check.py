"""Estimates whether a measurement fits into memory, before anything is built.

The estimate is computed from shapes and errs on the safe side; `memory` measures what was really used.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.cost import kv_numbers
from feathervlm.core.schedule import Schedule
from feathervlm.engine.decoder import DecoderView

GIB = 1 << 30
SHARE = 0.9
"""Share of the free memory that a measurement may need."""
SLACK = 2
"""Factor for memory that allocators hold besides the tensors in use: on a CPU the measured peak is at most this many
times the shapes."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the weights, of the KV cache of one run, and of everything else at its highest."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.cache + self.activations

    def __str__(self) -> str:
        parts = ", ".join(
            f"{value / GIB:.1f} {name}"
            for name, value in (("weights", self.weights), ("cache", self.cache), ("activations", self.activations))
        )
        return f"{self.total / GIB:.1f} GiB ({parts})"


def estimate(
    model: Any, inputs: dict[str, Tensor], batch: int, new_tokens: int, itemsize: int, schedules: Iterable[Schedule]
) -> MemoryEstimate:
    """Estimate the memory of a run, unpruned or with the most demanding of some methods.

    Args:
        model: Model on any device, the meta device included.
        inputs: Inputs of one sample.
        batch: Number of samples.
        new_tokens: Number of decoded tokens.
        itemsize: Bytes per number.
        schedules: Schedules of the methods.
    """
    view = DecoderView(model)
    length = inputs["input_ids"].shape[1]
    weights = sum(part.numel() for part in model.parameters()) * itemsize
    cache = kv_numbers(view.costs, [length + new_tokens] * len(view.costs)) * itemsize
    config = view.config
    widest = max((cost.attention_width + cost.kv_width for cost in view.costs), default=0)
    decoder = length * (6 * config.hidden_size + 3 * config.intermediate_size + 2 * widest) * itemsize
    if view.attention == "eager":  # scores in the model's type and their softmax in float32
        decoder += config.num_attention_heads * length**2 * (itemsize + 4)
    pairs = 3 * 4 * length**2 if any(map(compares_pairs, schedules)) else 0
    # The features of the pictures stay in memory while the decoder runs.
    highest = _encoder_bytes(model.config.vision_config, inputs, itemsize) + decoder + pairs
    pixels = sum(value.numel() for value in inputs.values() if value.is_floating_point()) * itemsize
    vocabulary = 8 * config.vocab_size
    return MemoryEstimate(weights, batch * cache, SLACK * batch * (highest + pixels + vocabulary))


def compares_pairs(schedule: Schedule) -> bool:
    """Return whether a signal of the schedule may be compared in pairs, which takes float32 (visual, visual)."""
    return any(signal.compares_pairs for signal in schedule.signals())


def _encoder_bytes(vision: Any, inputs: dict[str, Tensor], itemsize: int) -> int:
    """Return the bytes of the states of all layers of the vision encoder, since LLaVA selects one of them."""
    first = inputs.get("pixel_values")
    if first is None:
        return 0
    size = getattr(vision, "patch_size", 14)
    patch = prod(size) if isinstance(size, list | tuple) else size**2
    patches = first.numel() // (3 * patch * getattr(vision, "temporal_patch_size", 1))
    width = getattr(vision, "hidden_size", 1024)
    inner = getattr(vision, "intermediate_size", None) or 4 * width
    layers: Any = getattr(vision, "num_hidden_layers", None) or getattr(vision, "depth", 24)
    return int(patches * ((layers + 6) * width + 2 * inner) * itemsize)


def free(device: torch.device) -> int:
    """Return the free bytes of a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min([_system(), *_limits()])


def _system(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the free bytes of the machine."""
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the free bytes of each memory control group of this process (version 1 or 2) that has a limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    rooms = []
    for _, kinds, path in lines:
        if kinds not in ("", "memory"):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        folder = root / kinds / path.lstrip("/")
        if not folder.is_dir():  # inside a container the path may be that of the host
            folder = root / kinds
        try:
            limit, used = (int((folder / name).read_text()) for name in names)
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the absence of a limit is written as `max`
            continue
        rooms.append(limit - used + int(stat.get("total_inactive_file", stat.get("inactive_file", 0))))
    return rooms


def refusal(needed: MemoryEstimate, device: torch.device, what: str, room: int | None = None) -> str | None:
    """Return why a measurement does not fit, in one sentence with the remedy; None if it fits.

    Args:
        needed: Estimate of the measurement.
        device: Device that it would run on.
        what: Description of the measurement.
        room: Free bytes; None to ask the device.
    """
    room = free(device) if room is None else room
    if needed.total <= SHARE * room:
        return None
    return (
        f"{what} needs {needed}, and {room / GIB:.1f} GiB are free on {device}; choose fewer tokens, a smaller batch, "
        "--dtype bfloat16, a smaller config, or a device with more memory."
    )
