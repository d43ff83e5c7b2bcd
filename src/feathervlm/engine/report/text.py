"""The table of a report as plain text and as HTML."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from feathervlm.engine.report.costs import Costs
from feathervlm.engine.report.records import Record

Row = tuple[str, str]
"""A label and a value."""


def table(record: Record, costs: Costs) -> list[Row]:
    """Return the rows of a report: tokens per layer, their average, what was saved, and the time of selecting."""
    with_images = [sample for sample, total in enumerate(record.layout.counts) if total] or [0]
    starts = [0, *(stage.layer for stage in record.stages), len(record.costs)]
    layers = [
        (f"layers {first:>2} to {end - 1:>2}", spread([costs.tokens[sample][first] for sample in with_images]))
        for first, end in pairwise(starts)
        if end > first
    ]
    encoder = [
        ("vision encoder", f"{sum(run.entered) / len(run.entered):.1f} of {run.tokens} tokens per layer")
        for run in record.encoder
    ]
    included = f"text and {costs.scoring_ratio():.1%} for scoring" if record.scoring else "text"
    return [
        *layers,
        *dict.fromkeys(encoder),  # the frames of a video are alike
        ("average", f"{costs.average_tokens():.1f} of {totals(record)}"),
        ("prefill FLOPs", f"{costs.flops_ratio():.1%} of unpruned (decoder, {included} included)"),
        ("KV cache", f"{costs.kv_ratio():.1%} of unpruned"),
        ("selection", f"{1000 * costs.selection_seconds():.2f} ms"),
    ]


def totals(record: Record) -> str:
    """Return the number of visual tokens of the samples with images, as text."""
    return spread([total for total in record.layout.counts if total] or [0])


def as_text(method: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Lay out the rows of a report and its notes as lines of text."""
    width = max(len(label) for label, _ in rows)
    lines = [f"{method}: visual tokens per layer", *(f"  {label:<{width}}   {value}" for label, value in rows)]
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])


def as_html(method: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Lay out the rows of a report and its notes as an HTML table."""
    left = 'style="text-align:left"'
    lines = [f"<tr><th {left}>{escape(label)}</th><td {left}>{escape(value)}</td></tr>" for label, value in rows]
    lines += [f'<tr><td colspan="2" {left}>{escape(note)}</td></tr>' for note in notes]
    return f"<table><caption>{escape(method)}: visual tokens per layer</caption>{''.join(lines)}</table>"


def spread(numbers: Sequence[int]) -> str:
    """Return the number if all are equal, else the smallest and the largest.

    >>> spread([9, 9]), spread([9, 18])
    ('9', '9 to 18')
    """
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
