"""Writes the generated tables and pages of README, docs and model card from the code and the committed results.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. With `--check` nothing is written, and a file that would
change is an error; a test does the same.

Example: python scripts/generate_docs.py --check
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import choice_tables as choice
import forward_figure
import result_tables as tables
import serving_tables as serving
from feathervlm import methods
from feathervlm.bench import report as bench_report
from feathervlm.families import describe
from feathervlm.methods import describe as describe_method
from feathervlm.methods.base import REGISTRY
from feathervlm.study import report as study_report
from feathervlm.study.experiments import EXPERIMENTS
from result_tables import RESULTS, ROOT, markdown

FIGURES = "figures"
"""Path of the figures as seen from the pages in docs/results."""


def method_table() -> str:
    """Return one row for each method: its name, its idea, its source."""
    kinds = {name: REGISTRY[name] for name in methods.available()}
    rows = [[f"`{name}`", kind.summary().rstrip("."), kind.paper] for name, kind in kinds.items()]
    return markdown(["method", "idea", "source"], rows)


def forward_drawing() -> str:
    """Return the figure of one pruned forward."""
    return forward_figure.draw(tables.read("embedded/forward.json"))


def method_classes() -> str:
    """Return the lines by which mkdocstrings documents the classes of the methods."""
    kinds = [REGISTRY[name] for name in methods.available()]
    return "\n\n".join(f"::: {kind.__module__}.{kind.__qualname__}" for kind in kinds)


def short_method_table() -> str:
    """Return the names of the methods by where their first stage prunes, with the default parameters."""
    places: dict[str, list[str]] = {
        "inside the vision encoder": [],
        "before the language model": [],
        "inside the language model": [],
        "after the prompt has been read": [],
    }
    for name in methods.available():
        described = describe_method.describe(methods.get(name))
        if described["encoder"]:
            place = "inside the vision encoder"
        elif described["stages"][0]["layer_of_32"] == 0:
            place = "before the language model"
        elif described["stages"][0]["at"] == "end":
            place = "after the prompt has been read"
        else:
            place = "inside the language model"
        places[place].append(f"`{name}`")
    return markdown(["tokens first leave", "methods"], [[place, ", ".join(names)] for place, names in places.items()])


def study_page() -> str:
    """Return the report of the committed study next to those of the training seeds."""
    experiments = [tables.read(f"study/{experiment.name}.json") for experiment in EXPERIMENTS]
    others = [study_report.read_findings(other) for other in sorted(RESULTS.glob("study-small-*"))]
    return study_report.render("report.md.j2", experiments[0]["about"], experiments, others, place=FIGURES)


def performance_page() -> str:
    """Return the page on where pruning pays, from all of results/bench."""
    return bench_report.render(RESULTS / "bench", ROOT / "docs/results" / FIGURES, FIGURES)


def model_table() -> str:
    """Return one row for each model family."""
    titles = ["family", "`model_type`", "input", "grids of a picture", "decoder", "caches", "boxes", "limits"]
    rows = []
    for described in describe.families():
        row = described.to_dict()
        kinds = ", ".join(f"`{kind}`" for kind in row["model_types"])
        facts = (row["geometry"], row["decoder"], ", ".join(row["caches"]), row["box_format"] or "", row["limits"])
        rows.append([row["title"], kinds, ", ".join(row["input"]), *facts])
    return markdown(titles, rows)


def count_line() -> str:
    """Return how many families and model types there are, as a phrase."""
    kinds = [kind for described in describe.families() for kind in described.family.model_types]
    return (
        f"{len(describe.families()) - 1} families of transformers with {len(kinds)} model types, from LLaVA, Qwen-VL\n"
        "and InternVL to Gemma 3, Llama 4, Molmo 2 and PaddleOCR-VL."
    )


def refused_table() -> str:
    """Return which models cannot be pruned, and why."""
    return markdown(
        ["`model_type`", "why not"], [[f"`{kind}`", why] for kind, why in sorted(describe.UNSUPPORTED.items())]
    )


def methods_data() -> str:
    """Return what `feathervlm methods` shows without loading torch."""
    own = [name for name in methods.available() if REGISTRY[name].__module__.startswith("feathervlm.methods.")]
    return _data({"methods": [describe_method.describe(methods.get(name)) for name in own]})


def models_data() -> str:
    """Return what `feathervlm models` shows without loading transformers."""
    return _data({"families": [family.to_dict() for family in describe.families()], "refused": describe.UNSUPPORTED})


def _data(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "methods": method_table,
    "methods-short": short_method_table,
    "bench": tables.bench_table,
    "speed": tables.speed_line,
    "quality": tables.quality_table,
    "pruning": tables.pruning_table,
    "headline": tables.headline_table,
    "catalogue": tables.catalogue_table,
    "choice-coverage": choice.coverage_text,
    "choice-tasks": choice.task_table,
    "choice-controls": choice.control_table,
    "choice-settings": choice.setting_table,
    "choice-speed": choice.speed_table,
    "method-classes": method_classes,
    "lookup": tables.lookup_table,
    "serving-gain": serving.gain_tables,
    "serving-load": serving.load_table,
    "seeds-quality": tables.seeds_quality_table,
    "seeds-lookup": tables.seeds_lookup_table,
    "seeds": tables.seeds_table,
    "count": count_line,
    "models": model_table,
    "refused": refused_table,
}
FILES = {
    "README.md": ("methods-short", "count", "speed", "headline"),
    "docs/methods.md": ("methods",),
    "docs/reference/methods.md": ("method-classes",),
    "docs/which-method.md": ("choice-coverage", "choice-tasks", "choice-controls", "choice-settings", "choice-speed"),
    "docs/models.md": ("models", "refused"),
    "docs/results/catalogue.md": ("catalogue",),
    "docs/results/seeds.md": ("seeds-quality", "seeds-lookup", "seeds"),
    "docs/results/serving.md": ("serving-gain", "serving-load"),
    "src/feathervlm/embedded/weights/README.md": ("quality", "pruning", "lookup"),
}
"""Files with generated tables."""
PAGES = {
    "docs/forward.svg": forward_drawing,
    "docs/results/study.md": study_page,
    "docs/results/performance.md": performance_page,
    "src/feathervlm/cli/data/methods.json": methods_data,
    "src/feathervlm/cli/data/models.json": models_data,
}
"""Files that are generated as a whole."""


def render(text: str, names: Iterable[str], where: str) -> str:
    """Return the text of a file with the named tables generated again."""
    for name in names:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{where} has no place for the table {name!r}; add <!-- {name} --> and <!-- /{name} -->.")
        table = TABLES[name]()
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def main() -> None:
    """Read the command line, and write or check every file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file would change")
    check = parser.parse_args().check
    texts = {where: render((ROOT / where).read_text(), names, where) for where, names in FILES.items()}
    texts |= {where: page() for where, page in PAGES.items()}
    for where, text in texts.items():
        path = ROOT / where
        if path.exists() and path.read_text() == text:
            continue
        if check:
            raise SystemExit(f"{where} is out of date; run python scripts/generate_docs.py.")
        path.write_text(text)
        print(f"wrote {where}")


if __name__ == "__main__":
    main()
