"""One stage of a report."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.schedule import Half, Leave
from feathervlm.engine.report.records import StageRecord


@dataclass(frozen=True, eq=False)
class StageReport:
    """What one stage kept, and why.

    Attributes:
        layer: 0-based layer whose input the tokens were removed from.
        kept: For each sample, the original visual indices that were kept, long and ascending.
        scores: For each sample, float32 scores of the tokens that entered, in their order; None if nothing was
            scored. With several criteria, the scores of the first.
        groups: For each sample, the original visual index that each token which entered went to, long: its own if it
            was kept, -1 if it was dropped without merging. None if nothing merges.
        left: For each sample, the original visual indices that entered and were not kept, long and ascending.
        leave: What became of these: "drop", "wait" or "freeze".
        skip: The half of each layer that frozen tokens skip; None if they skip both.
        means: For each sample, the original visual indices of the tokens in whose rows the means of groups ran while
            the tokens themselves waited, long and ascending.
    """

    layer: int
    kept: list[Tensor]
    scores: list[Tensor] | None
    groups: list[Tensor] | None
    left: list[Tensor]
    leave: Leave = "drop"
    skip: Half | None = None
    means: list[Tensor] = field(default_factory=list)

    @property
    def entered(self) -> list[Tensor]:
        """For each sample, the original visual indices of the candidates of the stage, long and ascending."""
        return [torch.cat(pair).sort().values for pair in zip(self.kept, self.left, strict=True)]

    @classmethod
    def of(cls, record: StageRecord) -> "StageReport":
        """Make the report of a record, on the CPU."""
        entered = record.entered.cpu()

        def of_entered(values: Tensor | None) -> list[Tensor] | None:
            if values is None:
                return None
            return [row[mask] for row, mask in zip(values.cpu(), entered, strict=True)]

        kept = [row.nonzero()[:, 0] for row in record.kept.cpu()]
        left = [row.nonzero()[:, 0] for row in record.left.cpu()]
        signals = of_entered(record.scores), of_entered(record.groups)
        none = torch.zeros_like(record.kept)
        means = [row.nonzero()[:, 0] for row in (none if record.means is None else record.means).cpu()]
        return cls(record.layer, kept, *signals, left, record.leave, record.skip, means)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and lists, ready for JSON."""
        return {
            "layer": self.layer,
            "kept": [kept.tolist() for kept in self.kept],
            "scores": None if self.scores is None else [scores.tolist() for scores in self.scores],
            "groups": None if self.groups is None else [groups.tolist() for groups in self.groups],
            "leave": self.leave,
            "skip": self.skip,
            "left": [left.tolist() for left in self.left],
            "means": [means.tolist() for means in self.means],
        }
