"""Writes the tables of README, docs and model card from code and committed results; `--check` only compares.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. A test runs the check, so that words and facts agree.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from feathervlm import methods, models
from feathervlm.methods.base import REGISTRY

ROOT = Path(__file__).parent.parent
HEADLINE = (
    "unpruned",
    "fastv:layer=3,keep=0.25",
    "ensemble:layer=3,keep=0.25",
    "feather:layers=3+7",
    "feather",
    "random:layer=3,keep=0.25,seed=0",
    "uniform:layer=3,stride=2",
)


def method_table() -> str:
    """One row for each method: its name, its idea, where it comes from."""
    lines = ["| method | idea | source |", "| --- | --- | --- |"]
    for name in methods.available():
        cls = REGISTRY[name]
        lines.append(f"| `{name}` | {cls.summary().rstrip('.')} | {cls.paper} |")
    return "\n".join(lines)


def bench_table() -> str:
    """Measured prefill and decode against FLOPs, from results/bench/overhead-cpu.json."""
    result = json.loads((ROOT / "results/bench/overhead-cpu.json").read_text())
    lines = [
        "| method | visual tokens | prefill time | prefill FLOPs | selection | decode time | KV cache |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        tokens = " → ".join(map(str, row["visual_tokens"]))
        prefill, decode = (_interval(row[key]) for key in ("prefill_ratio", "decode_ratio"))
        share = f"{row['selection_share']['median']:.2%}" if row["selection_share"] else ""
        numbers = f"{row['flops_ratio']:.2f} | {share} | {decode} | {row['kv_bytes_ratio']:.2f}"
        lines.append(f"| `{row['variant']}` | {tokens} | {prefill} | {numbers} |")
    return "\n".join(lines)


def _interval(cell: dict[str, float]) -> str:
    return f"{cell['median']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})"


def quality_table() -> str:
    """The embedded model on every task, from results/embedded/quality.json."""
    result = json.loads((ROOT / "results/embedded/quality.json").read_text())
    lines = [
        f"| task (n = {result['unpruned']['n']}) | accuracy | IoU >= 0.25 | sizes and counts not seen in training (n = "
        f"{result['unseen']['n']}) | text only | best blind guess |",
        "| --- " * 6 + "|",
    ]
    for name, task in result["unpruned"]["tasks"].items():
        others = (result["unseen"]["tasks"][name]["accuracy"], result["text_only"]["tasks"][name]["accuracy"])
        loose = f"{task['accuracy_at_0.25']['value']:.3f}" if "accuracy_at_0.25" in task else ""
        unseen, blind = (_bracket(cell) for cell in others)
        lines.append(
            f"| {name} | {_bracket(task['accuracy'])} | {loose} | {unseen} | {blind} | {task['best_blind']:.3f} |"
        )
    return "\n".join(lines)


def pruning_table() -> str:
    """What each method costs localization and the other tasks, from results/embedded/pruning.json."""
    result = json.loads((ROOT / "results/embedded/pruning.json").read_text())
    lines = [
        f"| method (n = {result['unpruned']['n']} per task) | tokens per layer | in the bottom third (even: 0.33) "
        "| localization | targets in the top half | bottom half | other tasks |",
        "| --- " * 7 + "|",
        _pruning_row(result["unpruned"], 256),
    ]
    lines += [_pruning_row(row, row["average_tokens"]) for row in result["methods"]]
    return "\n".join(lines)


def headline_table() -> str:
    """A few rows of the same file: cost and gain side by side."""
    result = json.loads((ROOT / "results/embedded/pruning.json").read_text())
    rows = {row["method"]: row for row in (result["unpruned"], *result["methods"])}
    lines = [
        "| method | tokens per layer | prefill FLOPs | localization | other tasks |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in HEADLINE:
        row = rows[name]
        accuracy = _accuracies(row)
        flops = "1.00" if row["flops_ratio"] is None else f"{row['flops_ratio']:.2f}"
        tokens = 256 if row["average_tokens"] is None else row["average_tokens"]
        lines.append(f"| `{name}` | {tokens:.0f} | {flops} | {accuracy[0]} | {accuracy[1]} |")
    return "\n".join(lines)


def _accuracies(row: dict[str, Any]) -> list[str]:
    """Mean accuracy on localization and on the other tasks, with the change and its interval."""
    changes = row["mean_difference"]
    cells = []
    for kind, located in (("localization", True), ("others", False)):
        tasks = [task for task in row["tasks"].values() if ("mean_iou" in task) == located]
        change = f" ({_signed(changes[kind])})" if kind in changes else ""
        cells.append(f"{_mean(task['accuracy'] for task in tasks):.3f}{change}")
    return cells


def _pruning_row(row: dict[str, Any], tokens: float) -> str:
    located = [task for task in row["tasks"].values() if "mean_iou" in task]
    bottom = " → ".join(f"{share:.2f}" for share in row["kept_bottom_third"])
    halves = " | ".join(f"{_mean(task[half] for task in located):.3f}" for half in ("top_half", "bottom_half"))
    accuracy = _accuracies(row)
    return f"| `{row['method']}` | {tokens:.0f} | {bottom} | {accuracy[0]} | {halves} | {accuracy[1]} |"


def _mean(cells: Iterable[dict[str, float]]) -> float:
    return statistics.mean(cell["value"] for cell in cells)


def _signed(cell: dict[str, float]) -> str:
    return f"{cell['value']:+.3f}, {cell['low']:+.3f} to {cell['high']:+.3f}"


def _bracket(cell: dict[str, float]) -> str:
    return f"{cell['value']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})"


def model_table() -> str:
    """One row for each model family."""
    lines = ["| family | `model_type` | input | grids of a picture | decoder | caches | boxes | limits |"]
    lines.append("| --- " * 8 + "|")
    for described in models.families():
        row = described.to_dict()
        kinds = ", ".join(f"`{kind}`" for kind in row["model_types"])
        cells = (row["title"], kinds, ", ".join(row["input"]), row["geometry"], row["decoder"])
        cells += (", ".join(row["caches"]), row["box_format"] or "", row["limits"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def count_line() -> str:
    """How many families and model types there are."""
    kinds = [kind for described in models.families() for kind in described.family.model_types]
    return (
        f"{len(models.families()) - 1} families of transformers with {len(kinds)} model types, from LLaVA, Qwen-VL\n"
        "and InternVL to Gemma 3, Llama 4, Molmo 2 and PaddleOCR-VL."
    )


def refused_table() -> str:
    """What cannot be pruned, and why."""
    lines = ["| `model_type` | why not |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{kind}` | {reason} |" for kind, reason in sorted(models.REFUSED.items()))])


TABLES: dict[str, Callable[[], str]] = {
    "methods": method_table,
    "bench": bench_table,
    "quality": quality_table,
    "pruning": pruning_table,
    "headline": headline_table,
    "count": count_line,
    "models": model_table,
    "refused": refused_table,
}
FILES = {
    "README.md": ("methods", "count", "bench", "headline"),
    "docs/models.md": ("models", "refused"),
    "src/feathervlm/embedded/weights/README.md": ("quality", "pruning"),
}


def render(text: str, tables: Iterable[str], where: str) -> str:
    """The text with these tables made anew."""
    for name in tables:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{where} has no place for the table {name!r}.")
        table = TABLES[name]()
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


def main() -> None:
    """Write, or with --check only compare."""
    for where, tables in FILES.items():
        text = (ROOT / where).read_text()
        new = render(text, tables, where)
        if "--check" in sys.argv and new != text:
            raise SystemExit(f"{where} is out of date; run python tools/readme_tables.py.")
        (ROOT / where).write_text(new)


if __name__ == "__main__":
    main()
