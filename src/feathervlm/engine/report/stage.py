"""One stage of a report."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
    """

    layer: int
    kept: list[Tensor]
    scores: list[Tensor] | None
    groups: list[Tensor] | None

    @classmethod
    def of(cls, record: StageRecord) -> "StageReport":
        """Make the report of a record, on the CPU."""
        entered = record.entered.cpu()

        def of_entered(values: Tensor | None) -> list[Tensor] | None:
            if values is None:
                return None
            return [row[mask] for row, mask in zip(values.cpu(), entered, strict=True)]

        kept = [row.nonzero()[:, 0] for row in record.kept.cpu()]
        return cls(record.layer, kept, of_entered(record.scores), of_entered(record.groups))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and lists, ready for JSON."""
        return {
            "layer": self.layer,
            "kept": [kept.tolist() for kept in self.kept],
            "scores": None if self.scores is None else [scores.tolist() for scores in self.scores],
            "groups": None if self.groups is None else [groups.tolist() for groups in self.groups],
        }
