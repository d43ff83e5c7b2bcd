"""The answers of a study on disk: one run per method over all questions. Knows nothing of what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feathervlm.core.layout import Box
from feathervlm.journal import Journal

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Record:
    """One answer.

    Attributes:
        question: its number in the data set.
        answer: as written.
        right: whether it counts.
        iou: with the true box; None unless the question asks for one.
        box: that the answer names, in pixels; None if it names no valid one.
        top: whether the target's centre lies in the top half of the picture; None without a target.
        tokens: visual tokens per layer, averaged over layers; None if nothing was pruned.
        flops: FLOPs of the batch's prefill over those of the unpruned one; None if nothing was pruned.
        shape: (frames, rows, cols) of the picture's finest grid; None if nothing was pruned.
        kept: for each stage the cells of that grid that stayed, as `kept.pack` writes them.
        covers: what that grid covers of the picture, in pixels.
        target: the true box in shares of what that grid covers; None without one, or if nothing was pruned.
    """

    question: int
    answer: str
    right: bool
    iou: float | None = None
    box: Box | None = None
    top: bool | None = None
    tokens: float | None = None
    flops: float | None = None
    shape: tuple[int, int, int] | None = None
    kept: tuple[str, ...] = ()
    covers: Box | None = None
    target: Box | None = None


class Ledger(Journal[Record]):
    """The answers of a study, in `folder`; a run's name is its method's spec, or `UNPRUNED`. See `Journal`."""

    def __init__(self, folder: Path, key: Mapping[str, Any], begun: Mapping[str, Any] | None = None) -> None:
        super().__init__(folder, key, Record, begun)
