"""What a pruned forward leaves behind for the report: tensors as they lie on the device, read only when asked."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from feathervlm.core.cost import LayerCost
from feathervlm.core.layout import VisualLayout


class Stopwatch:
    """Times a piece of work on the device that it runs on, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self.events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self.events[0].record()
        self.start = time.perf_counter()

    def stop(self) -> Callable[[], float]:
        """Stop, and return what tells the seconds (and waits for the device if need be)."""
        if self.events is None:
            seconds = time.perf_counter() - self.start
            return lambda: seconds
        begin, end = self.events
        end.record()

        def read() -> float:
            end.synchronize()
            return begin.elapsed_time(end) / 1000

        return read


class PendingFlag:
    """A flag on its way from the device: reading it waits for the flag alone, not for work queued after it."""

    def __init__(self, flag: Tensor) -> None:
        self.flag, self.arrived = flag, None
        if flag.is_cuda:
            self.flag = flag.to("cpu", non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(flag.device))

    def __bool__(self) -> bool:
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.flag)


@dataclass(eq=False)
class StageRecord:
    """One stage: which tokens entered, which stayed, what the first criterion said.

    Attributes:
        layer: 0-based layer that tokens left before.
        entered: bool (batch, visual).
        kept: bool (batch, visual).
        scores: float32 (batch, visual), or None if nothing was scored.
        groups: long (batch, visual), the token that each went into, -1 for none; None if nothing merges.
        seconds: reads the time that scoring and selecting took.
        past: how many slots earlier turns filled in these layers, and which are real; None if none.
        cut: whether layers before have lost what they had cached of the tokens that left.
    """

    layer: int
    entered: Tensor
    kept: Tensor
    scores: Tensor | None
    groups: Tensor | None
    seconds: Callable[[], float]
    past: tuple[int, Tensor | None] | None = None
    cut: bool = False


class EncoderRun(NamedTuple):
    """One run of a vision encoder that merges, or one picture of a run that packs them: its tokens, [CLS] included.

    Attributes:
        tokens: that it was given.
        entered: of these, those that entered each layer.
    """

    tokens: int
    entered: list[int]


@dataclass(eq=False)
class Record:
    """One forward that brought images.

    Attributes:
        layout: its visual tokens.
        attended: bool (batch, sequence), False on padding; None if there was none.
        sequence: tokens of the input, padding included.
        costs: of every layer.
        past: cached positions of earlier turns.
        before: how many slots these filled in the layers before the first stage, and which are real, if those were
            cut; None if not.
        stages: in order.
        notes: what the user should know.
        encoder: every run of a vision encoder that merges.
    """

    layout: VisualLayout
    attended: Tensor | None
    sequence: int
    costs: list[LayerCost]
    past: int = 0
    before: tuple[int, Tensor | None] | None = None
    stages: list[StageRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoder: list[EncoderRun] = field(default_factory=list)
