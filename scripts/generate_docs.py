"""Writes tables of README, docs and model card and the data of `feathervlm methods` and `models`; `--check` compares.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. A test runs the check, so that words and facts agree.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from feathervlm import methods
from feathervlm.bench import report as page
from feathervlm.families import describe
from feathervlm.methods import describe as describe_method
from feathervlm.methods.base import REGISTRY
from feathervlm.study import report
from feathervlm.study.experiments import EXPERIMENTS

ROOT = Path(__file__).parent.parent
SEEDS = [path.name.removeprefix("study-") for path in sorted(ROOT.glob("results/study-small-*"))]
"""Training seeds of the smaller recipe, measured beside the shipped weights."""
HEADLINE = (
    "unpruned",
    "fastv:layer=2",
    "ensemble:layer=4",
    "feather:layers=4+8",
    "feather:layers=4+9",
    "uniform:layer=2",
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
    return page.headline(json.loads((ROOT / "results/bench/overhead-cpu.json").read_text()))


def speed_line() -> str:
    """What FEATHER saves in the same measurement, in a sentence."""
    rows = json.loads((ROOT / "results/bench/overhead-cpu.json").read_text())["rows"]
    row = next(row for row in rows if row["method"] == "feather:layers=8+16")
    ratio, ideal = row["ratio"], row["ideal"]
    return (
        f"On a 170M-parameter LLaVA (random weights, {row['tokens']} visual tokens, one CPU core) FEATHER takes "
        f"{ratio['prefill']['median']:.0%} of the unpruned prefill time\n(FLOPs say {ideal['prefill']:.0%}), "
        f"{ratio['decode']['median']:.0%} of the time of a decoding step and {row['kv_bytes_ratio']:.0%} of the KV "
        f"cache;\nchoosing tokens takes {row['selection_share']['median']:.2%} of a prefill. The vision encoder, which "
        f"it leaves alone, makes that {ratio['first_token']['median']:.0%} of the time to the first token."
    )


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


def _runs(study: str = "study") -> list[dict[str, Any]]:
    """Every run of a study, by default that of the shipped weights."""
    found: list[dict[str, Any]] = json.loads((ROOT / f"results/{study}/runs.json").read_text())["runs"]
    return found


def seeds_quality_table() -> str:
    """The training seeds unpruned and from text alone, from results/embedded/quality-small-*.json."""
    found = [json.loads((ROOT / f"results/embedded/quality-{seed}.json").read_text()) for seed in SEEDS]
    titles = [f"{seed} (n = {one['unpruned']['n']})" for seed, one in zip(SEEDS, found, strict=True)]
    lines = [f"| task | {' | '.join(titles)} | text only | best blind guess |", "| --- " * (len(SEEDS) + 3) + "|"]
    for name in found[0]["unpruned"]["tasks"]:
        cells = [_bracket(one["unpruned"]["tasks"][name]["accuracy"]) for one in found]
        blind = ", ".join(f"{one['text_only']['tasks'][name]['accuracy']['value']:.3f}" for one in found)
        lines.append(
            f"| {name} | {' | '.join(cells)} | {blind} | {found[0]['unpruned']['tasks'][name]['best_blind']:.3f} |"
        )
    return "\n".join(lines)


def seeds_table() -> str:
    """Every run of the studies of the training seeds: localization, the other tasks, the pull to the bottom."""
    seeds = [{row["method"]: row for row in _runs(f"study-{seed}")} for seed in SEEDS]
    kinds = {"localization": "localization", "other": "other tasks"}
    titles = [f"{kind}, {seed}" for kind in (*kinds.values(), "in the bottom third") for seed in SEEDS]
    lines = [f"| method | {' | '.join(titles)} |", "| --- " * (len(titles) + 1) + "|"]
    for method in seeds[0]:
        rows = [runs[method] for runs in seeds]
        cells = [_spread(row[kind]) for kind in kinds for row in rows] + [_bottom(row) for row in rows]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def pruning_table() -> str:
    """What each method costs localization and the other tasks."""
    lines = [
        "| method | tokens per layer | in the bottom third (even: 0.33) | localization | targets in the top half "
        "| bottom half | other tasks |",
        "| --- " * 7 + "|",
    ]
    for row in _runs():
        halves = " | ".join(f"{row[half]['value']:.3f}" for half in ("top_half", "bottom_half"))
        located, others = (_changed(row, kind) for kind in ("localization", "other"))
        lines.append(f"| `{row['method']}` | {_tokens(row)} | {_bottom(row)} | {located} | {halves} | {others} |")
    return "\n".join(lines)


def headline_table() -> str:
    """A few of them: cost and gain side by side."""
    rows = {row["method"]: row for row in _runs()}
    lines = [
        "| method | tokens per layer | prefill FLOPs | localization | other tasks |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in (rows[name] for name in HEADLINE):
        flops = "1.00" if row["flops_ratio"] is None else f"{row['flops_ratio']:.2f}"
        located, others = (_changed(row, kind) for kind in ("localization", "other"))
        lines.append(f"| `{row['method']}` | {_tokens(row)} | {flops} | {located} | {others} |")
    return "\n".join(lines)


def lookup_table() -> str:
    """The share of the scores on the target and what the query knows, by layer, from results/embedded/lookup.json."""
    rows = json.loads((ROOT / "results/embedded/lookup.json").read_text())["rows"]
    lines = [f"| before layer | {' | '.join(str(row['layer']) for row in rows)} |", "| --- " * (len(rows) + 1) + "|"]
    heeds = ((f"heeds_{kind}", f"another {kind} asked for") for kind in ("size", "colour", "shape"))
    for name, title in (("rope", "RoPE"), ("rope_free", "RoPE-free"), ("even", "even spread"), *heeds):
        lines.append(f"| {title} | {' | '.join(f'{row[name]:.2f}' for row in rows)} |")
    return "\n".join(lines)


def seeds_lookup_table() -> str:
    """The same for the training seeds."""
    found = [json.loads((ROOT / f"results/embedded/lookup-{seed}.json").read_text())["rows"] for seed in SEEDS]
    layers = [str(row["layer"]) for row in found[0]]
    lines = [f"| before layer | {' | '.join(layers)} |", "| --- " * (len(layers) + 1) + "|"]
    heeds = ((f"heeds_{kind}", f"another {kind} asked for") for kind in ("size", "colour", "shape"))
    for name, title in (("rope", "RoPE"), ("rope_free", "RoPE-free"), *heeds):
        for seed, rows in zip(SEEDS, found, strict=True):
            lines.append(f"| {title}, {seed} | {' | '.join(f'{row[name]:.2f}' for row in rows)} |")
    return "\n".join(lines)


def _bottom(row: dict[str, Any]) -> str:
    return " → ".join(f"{share['value']:.2f}" for share in row["bottom_third"] if share["value"] is not None)


def catalogue_table() -> str:
    """Every method at the same average numbers of tokens, from results/catalogue/catalogue.json."""
    found = json.loads((ROOT / "results/catalogue/catalogue.json").read_text())
    shares = sorted({row["share"] for row in found["rows"]}, reverse=True)
    cells = {(row["name"], row["share"]): row for row in found["rows"]}
    titles = [f"{share:.0%}: {kind}" for share in shares for kind in ("localization", "other tasks")]
    lines = [f"| method | {' | '.join(titles)} | specs |", "| --- " * (len(titles) + 2) + "|"]

    def reached(name: str) -> float:
        row = cells.get((name, shares[-1]))
        return row["localization"]["value"] if row else 0.0

    for name in sorted({name for name, _ in cells}, key=lambda name: (-reached(name), name)):
        row = [cells.get((name, share)) for share in shares]
        accuracies = [
            _spread(one[kind]) if one else "out of reach" for one in row for kind in ("localization", "other")
        ]
        specs = ", ".join(f"`{one['method']}`" for one in row if one)
        lines.append(f"| {name} | {' | '.join(accuracies)} | {specs} |")
    return "\n".join(lines)


def _spread(cell: dict[str, float]) -> str:
    return f"{cell['value']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})"


def _tokens(row: dict[str, Any]) -> str:
    return "256" if row["average_tokens"] is None else f"{row['average_tokens']:.0f}"


def _changed(row: dict[str, Any], kind: str) -> str:
    """Mean accuracy over the tasks of a kind, with the change to unpruned and its interval."""
    change = row[f"{kind}_change"]
    if row["method"] == "unpruned":
        return f"{row[kind]['value']:.3f}"
    return f"{row[kind]['value']:.3f} ({change['value']:+.3f}, {change['low']:+.3f} to {change['high']:+.3f})"


def study_page() -> str:
    """The report of the committed study beside those of the training seeds, with its figures where they lie."""
    folder = ROOT / "results/study"
    names = [experiment.name for experiment in EXPERIMENTS]
    experiments = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    others = [report.read_findings(other) for other in sorted(ROOT.glob("results/study-small-*"))]
    return report.render("report.md.j2", experiments[0]["about"], experiments, others, place="../results/study/figures")


def performance_page() -> str:
    """Where pruning pays, from all of results/bench."""
    return page.render(ROOT / "results/bench", "../results/bench")


def _bracket(cell: dict[str, float]) -> str:
    return f"{cell['value']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})"


def model_table() -> str:
    """One row for each model family."""
    lines = ["| family | `model_type` | input | grids of a picture | decoder | caches | boxes | limits |"]
    lines.append("| --- " * 8 + "|")
    for described in describe.families():
        row = described.to_dict()
        kinds = ", ".join(f"`{kind}`" for kind in row["model_types"])
        cells = (row["title"], kinds, ", ".join(row["input"]), row["geometry"], row["decoder"])
        cells += (", ".join(row["caches"]), row["box_format"] or "", row["limits"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def count_line() -> str:
    """How many families and model types there are."""
    kinds = [kind for described in describe.families() for kind in described.family.model_types]
    return (
        f"{len(describe.families()) - 1} families of transformers with {len(kinds)} model types, from LLaVA, Qwen-VL\n"
        "and InternVL to Gemma 3, Llama 4, Molmo 2 and PaddleOCR-VL."
    )


def refused_table() -> str:
    """What cannot be pruned, and why."""
    lines = ["| `model_type` | why not |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{kind}` | {reason} |" for kind, reason in sorted(describe.REFUSED.items()))])


def methods_data() -> str:
    """Return what `feathervlm methods` shows without loading torch."""
    own = [name for name in methods.available() if REGISTRY[name].__module__.startswith("feathervlm.methods.")]
    return _data({"methods": [describe_method.describe(methods.get(name)) for name in own]})


def models_data() -> str:
    """Return what `feathervlm models` shows without loading transformers."""
    return _data({"families": [family.to_dict() for family in describe.families()], "refused": describe.REFUSED})


def _data(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "methods": method_table,
    "bench": bench_table,
    "speed": speed_line,
    "quality": quality_table,
    "pruning": pruning_table,
    "headline": headline_table,
    "catalogue": catalogue_table,
    "lookup": lookup_table,
    "seeds-quality": seeds_quality_table,
    "seeds-lookup": seeds_lookup_table,
    "seeds": seeds_table,
    "count": count_line,
    "models": model_table,
    "refused": refused_table,
}
FILES = {
    "README.md": ("methods", "count", "bench", "speed", "headline"),
    "docs/models.md": ("models", "refused"),
    "docs/catalogue.md": ("catalogue",),
    "docs/seeds.md": ("seeds-quality", "seeds-lookup", "seeds"),
    "src/feathervlm/embedded/weights/README.md": ("quality", "pruning", "lookup"),
}
PAGES = {
    "docs/study.md": study_page,
    "docs/performance.md": performance_page,
    "src/feathervlm/cli/data/methods.json": methods_data,
    "src/feathervlm/cli/data/models.json": models_data,
}
"""Files that are generated as a whole."""


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
            raise SystemExit(f"{where} is out of date; run python scripts/generate_docs.py.")
        (ROOT / where).write_text(new)
    for where, make in PAGES.items():
        path, new = ROOT / where, make()
        if "--check" in sys.argv and (not path.exists() or path.read_text() != new):
            raise SystemExit(f"{where} is out of date; run python scripts/generate_docs.py.")
        path.write_text(new)


if __name__ == "__main__":
    main()
