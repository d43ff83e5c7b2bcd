"""Writes the README's tables from the code and the committed results: `python tools/readme_tables.py [--check]`.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. A test runs the check, so that README and facts agree.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from feathervlm import methods
from feathervlm.methods.base import REGISTRY

ROOT = Path(__file__).parent.parent


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


TABLES: dict[str, Callable[[], str]] = {"methods": method_table, "bench": bench_table}


def render(text: str) -> str:
    """The text with every table made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no place for the table {name!r}.")
        table = make()
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


def main() -> None:
    """Write, or with --check only compare."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = render(text)
    if "--check" in sys.argv and new != text:
        raise SystemExit("README.md is out of date; run python tools/readme_tables.py.")
    readme.write_text(new)


if __name__ == "__main__":
    main()
