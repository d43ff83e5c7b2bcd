"""The tables of README, docs and model card that are generated from `results/`; used by `generate_docs.py`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from feathervlm.bench import report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
SEEDS = [path.name.removeprefix("study-") for path in sorted(RESULTS.glob("study-small-*"))]
"""Names of the models of the smaller recipe, one for each training seed."""
HEADLINE = (
    "unpruned",
    "fastv:layer=2",
    "feather:layers=4+9",
    "feather:layers=4+8",
    "uniform:layer=2",
)
"""Methods in the short table of the README."""
KINDS = {"localization": "localization", "other": "other tasks"}
"""Kinds of tasks: key in the results, and title."""
EXCHANGED = [(f"heeds_{kind}", f"another {kind} asked for") for kind in ("size", "colour", "shape")]
"""Effect of exchanging a word: key in the results, and title."""


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join([_line(titles), "| --- " * len(titles) + "|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read(name: str) -> Any:
    """Return a JSON document of the results."""
    return json.loads((RESULTS / name).read_text())


def bench_table() -> str:
    """Return measured prefill and decode next to FLOPs."""
    return report.headline(read("bench/overhead-cpu.json"))


def speed_line() -> str:
    """Return what FEATHER saves in the same measurement, as sentences."""
    row = next(row for row in read("bench/overhead-cpu.json")["rows"] if row["method"] == "feather")
    ratio, ideal = row["ratio"], row["ideal"]
    return (
        f"On a 170M-parameter LLaVA (random weights, {row['tokens']} visual tokens, one CPU core) FEATHER takes "
        f"{ratio['prefill']['median']:.0%} of the unpruned prefill time\n(FLOPs: {ideal['prefill']:.0%}), "
        f"{ratio['decode']['median']:.0%} of the time of a decoding step and {row['kv_bytes_ratio']:.0%} of the KV "
        f"cache;\nselecting tokens takes {row['selection_share']['median']:.2%} of a prefill. With the vision encoder, "
        f"which it leaves unchanged, that is {ratio['first_token']['median']:.0%} of the time to the first token."
    )


def quality_table() -> str:
    """Return the accuracy of the embedded model on every task."""
    result = read("embedded/quality.json")
    titles = [
        f"task (n = {result['unpruned']['n']})", "accuracy", "IoU >= 0.25",
        f"sizes and counts not seen in training (n = {result['unseen']['n']})", "text only", "best blind guess",
    ]  # fmt: skip
    rows = []
    for name, task in result["unpruned"]["tasks"].items():
        unseen, blind = (_precise(result[part]["tasks"][name]["accuracy"]) for part in ("unseen", "text_only"))
        loose = f"{task['accuracy_at_0.25']['value']:.3f}" if "accuracy_at_0.25" in task else ""
        rows.append([name, _precise(task["accuracy"]), loose, unseen, blind, f"{task['best_blind']:.3f}"])
    return markdown(titles, rows)


def seeds_quality_table() -> str:
    """Return the accuracy of the training seeds, unpruned and from text alone."""
    documents = [read(f"embedded/quality-{seed}.json") for seed in SEEDS]
    titles = [f"{seed} (n = {one['unpruned']['n']})" for seed, one in zip(SEEDS, documents, strict=True)]
    rows = []
    for name, task in documents[0]["unpruned"]["tasks"].items():
        accuracies = [_precise(one["unpruned"]["tasks"][name]["accuracy"]) for one in documents]
        blind = ", ".join(f"{one['text_only']['tasks'][name]['accuracy']['value']:.3f}" for one in documents)
        rows.append([name, *accuracies, blind, f"{task['best_blind']:.3f}"])
    return markdown(["task", *titles, "text only", "best blind guess"], rows)


def seeds_table() -> str:
    """Return every method in the studies of the training seeds: both accuracies, and the bottom third."""
    seeds = [{row["method"]: row for row in _methods(f"study-{seed}")} for seed in SEEDS]
    titles = [f"{kind}, {seed}" for kind in (*KINDS.values(), "in the bottom third") for seed in SEEDS]
    rows = []
    for method in seeds[0]:
        own = [rows[method] for rows in seeds]
        accuracies = [_short(row[kind]) for kind in KINDS for row in own]
        rows.append([f"`{method}`", *accuracies, *map(_bottom, own)])
    return markdown(["method", *titles], rows)


def pruning_table() -> str:
    """Return what each method costs localization and the other tasks."""
    titles = [
        "method", "tokens per layer", "in the bottom third (even: 0.33)", "localization", "targets in the top half",
        "bottom half", "other tasks",
    ]  # fmt: skip
    rows = []
    for row in _methods("study"):
        halves = [f"{row[half]['value']:.3f}" for half in ("top_half", "bottom_half")]
        changes = (_change(row, "localization"), *halves, _change(row, "other"))
        rows.append([f"`{row['method']}`", _tokens(row), _bottom(row), *changes])
    return markdown(titles, rows)


def headline_table() -> str:
    """Return cost and accuracy of a few methods."""
    methods = {row["method"]: row for row in _methods("study")}
    rows = []
    for row in (methods[name] for name in HEADLINE):
        flops = "1.00" if row["flops_ratio"] is None else f"{row['flops_ratio']:.2f}"
        rows.append([f"`{row['method']}`", _tokens(row), flops, *(_change(row, kind) for kind in KINDS)])
    return markdown(["method", "tokens per layer", "prefill FLOPs", *KINDS.values()], rows)


def lookup_table() -> str:
    """Return by layer the share of the scores on the target, and the effect of exchanging a word."""
    layers = read("embedded/lookup.json")["rows"]
    names = [("rope", "RoPE"), ("rope_free", "RoPE-free"), ("even", "even spread"), *EXCHANGED]
    rows = [[title, *_column(layers, name)] for name, title in names]
    return markdown(["before layer", *(str(row["layer"]) for row in layers)], rows)


def seeds_lookup_table() -> str:
    """Return the same for the training seeds."""
    seeds = {seed: read(f"embedded/lookup-{seed}.json")["rows"] for seed in SEEDS}
    names = [("rope", "RoPE"), ("rope_free", "RoPE-free"), *EXCHANGED]
    rows = [[f"{title}, {seed}", *_column(layers, name)] for name, title in names for seed, layers in seeds.items()]
    return markdown(["before layer", *(str(row["layer"]) for row in seeds[SEEDS[0]])], rows)


def catalogue_table() -> str:
    """Return every method at the same average numbers of tokens, best localization at the smallest one first."""
    results = read("catalogue/catalogue.json")["rows"]
    shares = sorted({row["share"] for row in results}, reverse=True)
    cells = {(row["name"], row["share"]): row for row in results}

    def localization(name: str) -> float:
        row = cells.get((name, shares[-1]))
        return row["localization"]["value"] if row else 0.0

    rows = []
    for name in sorted({name for name, _ in cells}, key=lambda name: (-localization(name), name)):
        own = [cells.get((name, share)) for share in shares]
        accuracies = [_short(row[kind]) if row else "out of reach" for row in own for kind in KINDS]
        rows.append([name, *accuracies, ", ".join(f"`{row['method']}`" for row in own if row)])
    titles = [f"{share:.0%}: {kind}" for share in shares for kind in KINDS.values()]
    return markdown(["method", *titles, "specs"], rows)


def _methods(study: str) -> list[dict[str, Any]]:
    """Return the results of every method in a study."""
    rows: list[dict[str, Any]] = read(f"{study}/runs.json")["runs"]
    return rows


def _column(layers: Sequence[dict[str, Any]], name: str) -> list[str]:
    return [f"{row[name]:.2f}" for row in layers]


def _bottom(row: dict[str, Any]) -> str:
    return " → ".join(f"{share['value']:.2f}" for share in row["bottom_third"] if share["value"] is not None)


def _short(cell: dict[str, float]) -> str:
    return f"{cell['value']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})"


def _precise(cell: dict[str, float]) -> str:
    return f"{cell['value']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})"


def _tokens(row: dict[str, Any]) -> str:
    return "256" if row["average_tokens"] is None else f"{row['average_tokens']:.0f}"


def _change(row: dict[str, Any], kind: str) -> str:
    """Return the mean accuracy over the tasks of a kind, with its change from unpruned and the interval of that."""
    if row["method"] == "unpruned":
        return f"{row[kind]['value']:.3f}"
    change = row[f"{kind}_change"]
    return f"{row[kind]['value']:.3f} ({change['value']:+.3f}, {change['low']:+.3f} to {change['high']:+.3f})"
