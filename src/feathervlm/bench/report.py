"""Renders the performance page of the docs from committed measurements.

The sentences of the page are in a template; all numbers come from documents as `run_bench.run` returns them.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feathervlm.bench.rows import noise, unpruned
from feathervlm.bench.verdict import STEADY, BreakEven
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.utils import templates

AXES = {"tokens": "{} visual tokens", "batch": "batch {}", "layers": "{} layers"}
"""The axes that can be varied, and how the page writes their values."""
COLUMNS = ("method", "visual tokens", "batch", "layers", "tokens after each stage", "encoder", "prefill", "FLOPs",
           "gap", "first token", "selection", "decode", "KV cache", "peak memory")  # fmt: skip


@dataclass(frozen=True)
class Trend:
    """The change of one method's row from one end of an axis to the other.

    Attributes:
        config: Name of the preset or model.
        method: Spec of the method.
        axis: Key of the axis in a row.
        low: Row with the smallest value on the axis.
        high: Row with the largest value.
    """

    config: str
    method: str
    axis: str
    low: dict[str, Any]
    high: dict[str, Any]

    @property
    def verb(self) -> str:
        """What the ratio of the prefill does along the axis."""
        change = self.high["ratio"]["prefill"]["median"] - self.low["ratio"]["prefill"]["median"]
        return "stays" if abs(change) <= STEADY else ("falls" if change < 0 else "rises")


def render(folder: Path, figures: Path, place: str) -> str:
    """Return the page as Markdown.

    Args:
        folder: Directory with the JSON documents.
        figures: Directory with their figures, as PNG files of the same names.
        place: Path of that directory as seen from the page.
    """
    documents = read(folder)
    rows = [row for document in documents.values() for row in document["rows"]]
    verdicts = [one for document in documents.values() for one in document["verdicts"]]
    pruned = [row for row in rows if row["method"] != UNPRUNED]
    plain = [row for row in rows if row["method"] == UNPRUNED]
    bound = max(plain, key=encoder_share)
    (around,) = (document["rows"] for document in documents.values() if any(row is bound for row in document["rows"]))
    return templates.render(
        "feathervlm.bench",
        "performance.md.j2",
        {"quartiles": quartiles},
        documents=documents,
        figures={name: f"{place}/{name}.png" for name in documents if (figures / f"{name}.png").exists()},
        tables={name: table(document["rows"]) for name, document in documents.items()},
        points={name: points(document) for name, document in documents.items()},
        verdicts=verdicts,
        reasons=Counter(reason for one in verdicts if not one["gain"] for reason in one["reasons"]),
        trends={axis: [one for document in documents.values() for one in trends(document, axis)] for axis in AXES},
        case=lambda row, but="": ", ".join(words.format(row[axis]) for axis, words in AXES.items() if axis != but),
        axes=AXES,
        times={name: times(document["rows"]) for name, document in documents.items()},
        widest=max(pruned, key=lambda row: row["gap"]),
        slowest_selection=max(pruned, key=lambda row: row["selection_share"]["median"]),
        best=min(pruned, key=lambda row: row["ratio"]["first_token"]["median"]),
        slowest=max(pruned, key=lambda row: row["ratio"]["decode"]["median"]),
        bound=bound,
        bounded=[row for row in around if row is not bound and unpruned(row, around) is bound],
        encoder_share=encoder_share,
        noise=max(noise(row, "prefill") for row in plain),
        devices=sorted({document["settings"]["device"] for document in documents.values()}),
    )


def read(folder: Path) -> dict[str, Any]:
    """Return the documents of a folder by name, sorted."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return all rows as a Markdown table; the unpruned row shows the ratios of its second run to its first."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)])


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of one row of `table`."""
    share, peak = row["selection_share"], row["peak_ratio"]
    return [
        f"`{row['method']}`",
        *(str(row[axis]) for axis in AXES),
        " → ".join(f"{stage['tokens']:.0f}" for stage in row["stages"]),
        f"{row['ratio']['encoder']['median']:.2f}",
        quartiles(row["ratio"]["prefill"]),
        f"{row['ideal']['prefill']:.2f}",
        f"{row['gap']:+.2f}" if share else "",
        quartiles(row["ratio"]["first_token"]),
        f"{share['median']:.2%}" if share else "",
        quartiles(row["ratio"]["decode"]),
        f"{row['kv_bytes_ratio']:.2f}",
        "" if peak is None else f"{peak:.2f}",
    ]


def times(rows: Sequence[dict[str, Any]]) -> str:
    """Return the seconds and bytes of the unpruned model, which the ratios refer to, as a Markdown table."""
    lines = [
        "| visual tokens | batch | layers | text tokens | vision encoder | prefill | first token | each further token "
        "| KV cache | peak beside weights |",
        "| --- " * 10 + "|",
    ]
    for row in rows:
        if row["method"] == UNPRUNED:
            seconds = [row["seconds"][part]["median"] for part in ("encoder", "prefill", "first_token", "decode")]
            peak = "not measured" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f} MiB"
            facts = [*(row[axis] for axis in AXES), row["text"], *(f"{1e3 * value:.1f} ms" for value in seconds)]
            lines.append(f"| {' | '.join(map(str, facts))} | {row['kv_bytes'] / 2**20:.1f} MiB | {peak} |")
    return "\n".join(lines)


def quartiles(value: dict[str, float]) -> str:
    """Return a median with its quartiles as text."""
    return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def points(document: dict[str, Any]) -> str:
    """Return break-even numbers of tokens as a Markdown table; empty if all are below the measured numbers."""
    values = [BreakEven(**one) for one in document["break_even"]]
    if all(one.relation == "below" for one in values):
        return ""
    keys = list(dict.fromkeys((one.method, one.batch, one.layers) for one in values))
    texts = {(one.method, one.batch, one.layers, one.part): str(one) for one in values}
    levels = dict.fromkeys((one.part, one.level) for one in values)
    titles = [
        "a prefill that is no slower" if level == 1 else f"a first token in {level:.0%} of the time"
        for _, level in levels
    ]
    lines = [f"| method | batch | layers | {' | '.join(titles)} |", "| --- " * (3 + len(titles)) + "|"]
    for key in keys:
        numbers = [texts[*key, part] for part, _ in levels]
        lines.append(f"| `{key[0]}` | {key[1]} | {key[2]} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def trends(document: dict[str, Any], axis: str) -> list[Trend]:
    """Return the trend of every line of rows that differ along one axis only."""
    config = document["settings"]["model"] or document["settings"]["config"]
    others = [other for other in AXES if other != axis]
    lines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in document["rows"]:
        if row["method"] != UNPRUNED:
            lines.setdefault((row["method"], *(row[other] for other in others)), []).append(row)
    result = []
    for (method, *_), line in lines.items():
        low, high = (choose(line, key=lambda row: row[axis]) for choose in (min, max))
        if low[axis] != high[axis]:
            result.append(Trend(config, method, axis, low, high))
    return result


def encoder_share(plain: dict[str, Any]) -> float:
    """Return the share of the vision encoder in the unpruned time to first token."""
    seconds = plain["seconds"]
    return float(seconds["encoder"]["median"] / seconds["first_token"]["median"])


def headline(document: dict[str, Any]) -> str:
    """Return the first case of a document as a Markdown table, which the README shows."""
    lines = [
        "| method | visual tokens | prefill time | prefill FLOPs | first token | selection | decode time | KV cache |",
        "| --- " * 8 + "|",
    ]
    rows = document["rows"]
    case = [row for row in rows if unpruned(row, rows) is unpruned(rows[0], rows)]
    for row in case:
        tokens = " → ".join([str(row["tokens"]), *(f"{stage['tokens']:.0f}" for stage in row["stages"])])
        prefill, first, decode = (quartiles(row["ratio"][part]) for part in ("prefill", "first_token", "decode"))
        share = f"{row['selection_share']['median']:.2%}" if row["selection_share"] else ""
        rest = f"{row['ideal']['prefill']:.2f} | {first} | {share} | {decode} | {row['kv_bytes_ratio']:.2f}"
        lines.append(f"| `{row['method']}` | {tokens} | {prefill} | {rest} |")
    return "\n".join(lines)
