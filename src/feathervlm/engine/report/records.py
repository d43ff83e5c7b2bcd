"""What a pruned forward records for the report: tensors that stay on their device and are read only when asked for."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from feathervlm.core.cost import LayerCost
from feathervlm.core.layout import Box, VisualLayout


class Timer:
    """Measures a piece of work on the device that it runs on, without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self.events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self.device = device
        if device.type == "cuda":
            self.events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self.events[0].record(torch.cuda.current_stream(device))
        self.start = time.perf_counter()

    def stop(self) -> Callable[[], float]:
        """Stop, and return a function that returns the seconds, for which it waits for the device if need be."""
        if self.events is None:
            seconds = time.perf_counter() - self.start
            return lambda: seconds
        begin, end = self.events
        end.record(torch.cuda.current_stream(self.device))

        def read() -> float:
            end.synchronize()
            return begin.elapsed_time(end) / 1000

        return read


class PendingFlag:
    """A flag that is being copied from the device: reading it waits for the flag alone, not for work queued later."""

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
    """One stage: which tokens entered, which were kept, and the scores of the first criterion.

    Attributes:
        layer: 0-based layer whose input the tokens were removed from.
        entered: Tokens that entered, bool (batch, visual).
        kept: Tokens that were kept, bool (batch, visual).
        scores: Scores of the first criterion, float32 (batch, visual); None if nothing was scored.
        groups: Token that each token went into, -1 for none, long (batch, visual); None if nothing merges.
        seconds: Function that returns the seconds that scoring and selecting took.
        past: For each type of layer, the number of slots that previous turns filled in these layers, and which of them
            are real (None: all); empty if there are none.
        cut: Whether the layers before the stage have lost what they had cached of the removed tokens.
    """

    layer: int
    entered: Tensor
    kept: Tensor
    scores: Tensor | None
    groups: Tensor | None
    seconds: Callable[[], float]
    past: dict[str, tuple[int, Tensor | None]] = field(default_factory=dict)
    cut: bool = False


class EncoderRun(NamedTuple):
    """One run of a vision encoder that merges tokens, or one picture of a run that packs several.

    Attributes:
        tokens: Number of tokens of the run, [CLS] included.
        entered: Number of tokens that entered each layer, [CLS] included.
    """

    tokens: int
    entered: list[int]


def whole_picture(processor: Any, size: tuple[int, int]) -> Box:
    """Return the box of a whole picture of `size` (width, height), whatever the processor."""
    return 0.0, 0.0, float(size[0]), float(size[1])


@dataclass(eq=False)
class Record:
    """One forward that brought images.

    Attributes:
        layout: Layout of its visual tokens.
        attended: False on padding, bool (batch, sequence); None without padding.
        query: Position of the token that asked for every image, long (batch, images).
        sequence: Number of tokens of the input, padding included.
        costs: Cost of every layer.
        past: Number of cached positions of previous turns.
        before: Number of slots that previous turns filled in the layers before the first stage, and which of them are
            real (None: all); None if those layers were not cut.
        stages: Stages in order.
        scoring: The scoring passes that ran for this forward; their `costs` end with the last layer that they ran.
        types: Type of every layer, such as "full_attention".
        notes: Sentences that the user should know.
        encoder: Every run of a vision encoder that merges tokens.
        shown: The family's `shown`: maps a processor and the (width, height) of a picture to the part of the picture
            that the model was shown, in pixels.
        crops: Whether that part depends on the processor.
    """

    layout: VisualLayout
    attended: Tensor | None
    query: Tensor
    sequence: int
    costs: list[LayerCost]
    past: int = 0
    before: tuple[int, Tensor | None] | None = None
    stages: list[StageRecord] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    scoring: list["Record"] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoder: list[EncoderRun] = field(default_factory=list)
    shown: Callable[[Any, tuple[int, int]], Box] = whole_picture
    crops: bool = False

    def dropped(self, stage: int = -1) -> Tensor:
        """Return which tokens have been dropped after a stage, bool (batch, sequence)."""
        if not self.stages:
            return torch.zeros_like(self.layout.mask)
        exists, visual = self.layout.geometry().exists, self.layout.positions()
        stays = torch.nn.functional.pad(~self.layout.mask, (0, 1))  # tokens that do not exist go to the column more
        kept = self.stages[stage].kept.to(stays.device)
        return ~stays.scatter(1, torch.where(exists, visual, self.sequence), kept)[:, :-1]
