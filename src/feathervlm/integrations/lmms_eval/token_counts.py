"""The numbers of pruning for one sample, among the token counts that lmms-eval writes into its samples."""

from dataclasses import dataclass, field
from typing import Any

from lmms_eval.api.instance import TokenCounts

from feathervlm.engine.report.report import Report


@dataclass
class PrunedCounts(TokenCounts):
    """The token counts of lmms-eval with the numbers of pruning; lmms-eval writes what `to_dict` returns.

    Attributes:
        pruning: Plain values, ready for JSON.
    """

    pruning: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all counts as plain values."""
        return {**super().to_dict(), **self.pruning}


def of_report(report: Report, batch: int) -> dict[str, Any]:
    """Return the numbers of one sample of a batch.

    `selection_seconds` is the equal share of the sample in the time of its whole batch.
    """
    tokens = report.tokens_per_layer[batch]
    return {
        "visual_tokens": report.record.layout.counts[batch],
        "kept_tokens": [len(stage.kept[batch]) for stage in report.stages],
        "average_tokens": sum(tokens) / len(tokens),
        "selection_seconds": report.selection_seconds / len(report.tokens_per_layer),
    }
