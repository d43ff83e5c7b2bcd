"""docs/performance.md, made from the committed measurements. Its sentences stand in a template, its figures never do.

Reads documents as `running.run` makes them; measures nothing.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feathervlm.bench.rows import UNPRUNED, noise, unpruned
from feathervlm.bench.verdict import STEADY, BreakEven
from feathervlm.utils import templates

AXES = {"tokens": "{} visual tokens", "batch": "batch {}", "layers": "{} layers"}
"""What may be varied, and how it is told."""
COLUMNS = ("method", "visual tokens", "batch", "layers", "left by stage", "encoder", "prefill", "FLOPs", "gap",
           "first token", "selection", "decode", "KV cache", "peak memory")  # fmt: skip


@dataclass(frozen=True)
class Ends:
    """How one method's row changes from one end of what was varied to the other.

    Attributes:
        config: of which model.
        method: its spec.
        axis: what was varied, as a row calls it.
        low: the row with the smallest value.
        high: the row with the largest.
    """

    config: str
    method: str
    axis: str
    low: dict[str, Any]
    high: dict[str, Any]

    @property
    def word(self) -> str:
        """What the ratio of the prefill does."""
        change = self.high["ratio"]["prefill"]["median"] - self.low["ratio"]["prefill"]["median"]
        return "stays" if abs(change) <= STEADY else ("falls" if change < 0 else "rises")


def render(folder: Path, figures: str) -> str:
    """The page.

    Args:
        folder: of the results.
        figures: where the page finds the figures, which lie beside the results.
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
        {"spread": spread},
        documents=documents,
        figures={name: f"{figures}/{name}.png" for name in documents if (folder / f"{name}.png").exists()},
        tables={name: table(document["rows"]) for name, document in documents.items()},
        points={name: points(document) for name, document in documents.items()},
        verdicts=verdicts,
        reasons=Counter(reason for one in verdicts if not one["gain"] for reason in one["reasons"]),
        ends={axis: [end for document in documents.values() for end in ends(document, axis)] for axis in AXES},
        told=lambda row, but="": ", ".join(words.format(row[axis]) for axis, words in AXES.items() if axis != but),
        axes=AXES,
        times={name: times(document["rows"]) for name, document in documents.items()},
        widest=max(pruned, key=lambda row: row["gap"]),
        dearest=max(pruned, key=lambda row: row["selection_share"]["median"]),
        best=min(pruned, key=lambda row: row["ratio"]["first_token"]["median"]),
        slowest=max(pruned, key=lambda row: row["ratio"]["decode"]["median"]),
        bound=bound,
        bounded=[row for row in around if row is not bound and unpruned(row, around) is bound],
        encoder_share=encoder_share,
        wobble=max(noise(row, "prefill") for row in plain),
        devices=sorted({document["settings"]["device"] for document in documents.values()}),
    )


def read(folder: Path) -> dict[str, Any]:
    """The documents of a folder by name, sorted."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Every row, as Markdown; the unpruned one shows the ratios of its second run to its first."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)])


def cells(row: dict[str, Any]) -> list[str]:
    """One row of `table`."""
    share, peak = row["selection_share"], row["peak_ratio"]
    return [
        f"`{row['method']}`",
        *(str(row[axis]) for axis in AXES),
        " → ".join(f"{stage['tokens']:.0f}" for stage in row["stages"]),
        f"{row['ratio']['encoder']['median']:.2f}",
        spread(row["ratio"]["prefill"]),
        f"{row['ideal']['prefill']:.2f}",
        f"{row['gap']:+.2f}" if share else "",
        spread(row["ratio"]["first_token"]),
        f"{share['median']:.2%}" if share else "",
        spread(row["ratio"]["decode"]),
        f"{row['kv_bytes_ratio']:.2f}",
        "" if peak is None else f"{peak:.2f}",
    ]


def times(rows: Sequence[dict[str, Any]]) -> str:
    """What the ratios are of: seconds and bytes of the unpruned model, as Markdown."""
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


def spread(found: dict[str, float]) -> str:
    """A median with its quartiles."""
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def points(document: dict[str, Any]) -> str:
    """Break-even numbers of tokens, as Markdown; empty if all lie below what was measured."""
    found = [BreakEven(**one) for one in document["break_even"]]
    if all(one.relation == "below" for one in found):
        return ""
    keys = list(dict.fromkeys((one.method, one.batch, one.layers) for one in found))
    told = {(one.method, one.batch, one.layers, one.part): str(one) for one in found}
    levels = dict.fromkeys((one.part, one.level) for one in found)
    titles = [
        "a prefill that is no slower" if level == 1 else f"a first token in {level:.0%} of the time"
        for _, level in levels
    ]
    lines = [f"| method | batch | layers | {' | '.join(titles)} |", "| --- " * (3 + len(titles)) + "|"]
    for key in keys:
        numbers = [told[*key, part] for part, _ in levels]
        lines.append(f"| `{key[0]}` | {key[1]} | {key[2]} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def ends(document: dict[str, Any], axis: str) -> list[Ends]:
    """Both ends of every line of rows that differ along one axis only."""
    config = document["settings"]["model"] or document["settings"]["config"]
    others = [other for other in AXES if other != axis]
    lines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in document["rows"]:
        if row["method"] != UNPRUNED:
            lines.setdefault((row["method"], *(row[other] for other in others)), []).append(row)
    found = []
    for (method, *_), line in lines.items():
        low, high = (choose(line, key=lambda row: row[axis]) for choose in (min, max))
        if low[axis] != high[axis]:
            found.append(Ends(config, method, axis, low, high))
    return found


def encoder_share(plain: dict[str, Any]) -> float:
    """What the vision encoder takes of the unpruned time to first token."""
    seconds = plain["seconds"]
    return float(seconds["encoder"]["median"] / seconds["first_token"]["median"])


def headline(document: dict[str, Any]) -> str:
    """The table of the README: one case, Markdown."""
    lines = [
        "| method | visual tokens | prefill time | prefill FLOPs | first token | selection | decode time | KV cache |",
        "| --- " * 8 + "|",
    ]
    rows = document["rows"]
    case = [row for row in rows if unpruned(row, rows) is unpruned(rows[0], rows)]
    for row in case:
        tokens = " → ".join([str(row["tokens"]), *(f"{stage['tokens']:.0f}" for stage in row["stages"])])
        prefill, first, decode = (spread(row["ratio"][part]) for part in ("prefill", "first_token", "decode"))
        share = f"{row['selection_share']['median']:.2%}" if row["selection_share"] else ""
        rest = f"{row['ideal']['prefill']:.2f} | {first} | {share} | {decode} | {row['kv_bytes_ratio']:.2f}"
        lines.append(f"| `{row['method']}` | {tokens} | {prefill} | {rest} |")
    return "\n".join(lines)
