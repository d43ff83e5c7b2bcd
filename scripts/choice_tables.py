"""The tables of docs/which-method.md, from the committed results and the descriptions of the methods; used by
`generate_docs.py`.

Two accuracies count as different here if their 95 % intervals do not overlap.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from feathervlm import methods
from feathervlm.methods import describe as describe_method
from result_tables import KINDS, markdown, read

ASKED = {
    "locate": "the place of an object that is described",
    "relation": "the place of an object that is described by another one",
    "place": "the place of an object that is described by where it is",
    "cluttered": "the place of an object among 10 to 12",
    "reading": "the digit on a sign",
    "attribute": "a colour or a shape",
    "counting": "how many there are",
    "existence": "whether there is one",
    "spatial": "whether one is left of, right of, above or below another",
    "background": "what the background is",
}
"""What the questions of each task ask for."""
EXPERIMENTS = ("before-llm", "shuffled-positions", "text-only")
"""Methods that show something about a model and are no choice for using it."""
CONTROL = "random"
SMALLEST, MIDDLE = 0.11, 0.22
"""Budgets: tokens per layer as a share of all."""
MANY = 576
"""Visual tokens of LLaVA 1.5."""

Row = dict[str, Any]


def coverage_text() -> str:
    """Return what was measured, as sentences."""
    document = _catalogue()
    model, questions = document["model"], document["questions"]
    *shares, largest = sorted({row["share"] for row in document["rows"]})
    budgets = f"{', '.join(f'{100 * share:.0f}' for share in shares)} and {100 * largest:.0f} %"
    names = {row["name"] for row in document["rows"]}
    return (
        f"All accuracies on this page come from one model, the embedded one ({model['depth']} decoder layers, 256 "
        f"visual tokens),\non generated scenes: {len(names)} methods and variants, {min(questions.values())} questions "
        f"for each of {len(questions)} tasks, {budgets} of the visual\ntokens per layer, {model['dtype']} on a "
        f"{'CPU' if model['device'] == 'cpu' else model['device']}, greedy decoding. The unpruned model answers "
        f"{document['unpruned']['localization']['value']:.2f} of the localization\nquestions and "
        f"{document['unpruned']['other']['value']:.2f} of the others."
    )


def task_table() -> str:
    """Return for every task the best methods at the smallest budget, and the control."""
    cells: dict[str, Callable[[Row], Row]] = {
        f"`{task}`: {asked}": lambda row, task=task: row["tasks"][task] for task, asked in ASKED.items()
    }
    cells |= {f"**mean, {title}**": lambda row, kind=kind: row[kind] for kind, title in KINDS.items()}
    rows = []
    for title, cell in cells.items():
        found = sorted(_measured(SMALLEST), key=lambda row, cell=cell: (-cell(row)["value"], row["name"]))
        best, control = found[0], next(row for row in found if row["name"] == CONTROL)
        near = [row["name"] for row in found[1:] if not _above(cell(best), cell(row))]
        others = ", ".join(near[:4]) + (f" and {len(near) - 4} more" if len(near) > 4 else "")
        accuracies = [f"{cell(row)['value']:.2f}" for row in (_catalogue()["unpruned"], control)]
        rows.append(
            [title, accuracies[0], f"{best['name']} {cell(best)['value']:.2f}", others or "none", accuracies[1]]
        )
    return markdown(["asked for", "unpruned", "best", "not told apart from it", CONTROL], rows)


def control_table() -> str:
    """Return whether every method does better than random tokens at the same budget."""
    shares = sorted({row["share"] for row in _catalogue()["rows"]}, reverse=True)
    cells = {(row["name"], row["share"]): row for row in _catalogue()["rows"]}

    def verdict(name: str, share: float, kind: str) -> str:
        row, control = cells.get((name, share)), cells[CONTROL, share][kind]
        if row is None:
            return "out of reach"
        return "better" if _above(row[kind], control) else "worse" if _above(control, row[kind]) else "same"

    rows = [
        [name, *(verdict(name, share, kind) for kind in KINDS for share in shares)]
        for name in dict.fromkeys(name for name, _ in cells)
        if name != CONTROL
    ]
    order = {"better": 0, "same": 1, "worse": 2, "out of reach": 3}
    rows.sort(key=lambda row: ([order[cell] for cell in row[3:0:-1]], row[0]))
    return markdown(
        ["method", *(f"{title}, {100 * share:.0f} %" for title in KINDS.values() for share in shares)], rows
    )


def setting_table() -> str:
    """Return which methods fit a setting, by what their schedules read and keep."""
    settings: dict[str, Callable[[Row], bool]] = {
        "Several questions about one picture: the choice reads no text": lambda one: not one["needs_text"],
        "Every layer of the language model has to be cheap: tokens leave before the first one": lambda one: (
            _first(one) == 0 and not one["encoder"] and not any(stage["leave"] != "drop" for stage in one["stages"])
        ),
        "The vision encoder has to be faster, too": lambda one: bool(one["encoder"]),
        "No padding in a batch: equal pictures keep equal numbers of tokens": lambda one: one["count_known"],
        "The vision encoder is left alone: nothing is read or merged inside it": lambda one: (
            not one["encoder"] and not any("vision encoder" in need for need in one["needs"])
        ),
        "A kept token stays as it is: nothing is merged into it": lambda one: (
            not one["encoder"] and not any(stage["merged"] or stage["update"] for stage in one["stages"])
        ),
    }
    rows = []
    for title, fits in settings.items():
        found = [(one["name"], _localization(one["name"])) for one in _described() if fits(one)]
        found.sort(key=lambda pair: (-(pair[1] or 0), pair[0]))
        rows.append([title, ", ".join(f"`{name}`" + (f" {value:.2f}" if value else "") for name, value in found)])
    return markdown(["setting", f"methods, with localization at {100 * MIDDLE:.0f} % where it was measured"], rows)


def speed_table() -> str:
    """Return measured times of methods at their default budgets."""
    document = read("bench/tokens-cpu.json")
    pays = {row["method"]: row for row in document["break_even"] if row["part"] == "first_token"}
    rows = []
    for row in sorted(document["rows"], key=lambda row: row["ratio"]["first_token"]["median"]):
        if row["tokens"] != MANY or row["method"] not in pays:
            continue
        most = max(
            (other for other in document["rows"] if other["method"] == row["method"]), key=lambda other: other["tokens"]
        )
        ratios = (row["ratio"]["prefill"], row["ratio"]["first_token"], row["selection_share"], most["selection_share"])
        limit = pays[row["method"]]
        start = f"{'' if limit['relation'] == 'at' else limit['relation'] + ' '}{limit['tokens']}"
        rows.append([f"`{row['method']}`", f"{row['average_tokens']:.0f}", *map(_percent, ratios), start])
    largest = max(row["tokens"] for row in document["rows"])
    titles = [
        "method", f"tokens per layer of {MANY}", "prefill", "time to first token", "selection",
        f"selection with {largest} tokens", "a first token in 90 % of the time from",
    ]  # fmt: skip
    return markdown(titles, rows)


@cache
def _catalogue() -> Any:
    return read("catalogue/catalogue.json")


@cache
def _described() -> list[Row]:
    found = (describe_method.describe(methods.get(name)) for name in methods.available())
    return [one for one in found if one["name"] not in EXPERIMENTS]


def _measured(share: float) -> Iterator[Row]:
    """Yield the rows of a budget; one that repeats the spec of a previous one is left out."""
    specs = set()
    for row in _catalogue()["rows"]:
        if row["share"] == share and row["method"] not in specs:
            specs.add(row["method"])
            yield row


def _localization(name: str) -> float | None:
    """Return what the first row of a method reaches, which has its default form; None if it was not measured."""
    for row in _measured(MIDDLE):
        if row["method"].partition(":")[0] == name:
            return float(row["localization"]["value"])
    return None


def _first(described: Row) -> int:
    layer: int = described["stages"][0]["layer_of_32"]
    return layer


def _above(one: Row, other: Row) -> bool:
    """Return whether the interval of one accuracy lies above that of another."""
    return bool(one["low"] > other["high"])


def _percent(ratio: Row) -> str:
    percent = 100 * ratio["median"]
    return "below 0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"
