"""What pruning did to one sample, in the one place where lmms-eval lets a model write into its samples."""

from dataclasses import dataclass, field
from typing import Any

from feathervlm.engine.report.report import Report
from lmms_eval.api.instance import TokenCounts


@dataclass
class PrunedCounts(TokenCounts):
    """lmms-eval's token counts, and beside them what pruning did; lmms-eval writes what `to_dict` returns.

    Attributes:
        pruning: plain values, ready for JSON.
    """

    pruning: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All counts as plain values."""
        return {**super().to_dict(), **self.pruning}


def of_report(report: Report, batch: int) -> dict[str, Any]:
    """What a report says of one sample of its batch.

    `selection_seconds` is the sample's equal share of the time that its whole batch took.
    """
    tokens = report.tokens_per_layer[batch]
    return {
        "visual_tokens": report.record.layout.counts[batch],
        "kept_tokens": [len(stage.kept[batch]) for stage in report.stages],
        "average_tokens": sum(tokens) / len(tokens),
        "selection_seconds": report.selection_seconds / len(report.tokens_per_layer),
    }
