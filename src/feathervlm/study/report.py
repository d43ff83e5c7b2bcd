"""The report of a study: Markdown beside its figures, and one HTML page that holds everything.

A report is made from the JSON documents of the experiments, so that it can be made again without a model.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.utils import files, templates
from feathervlm.utils.text import printable

VERDICTS = {"reproduced": "reproduced", "partly": "partly reproduced", "not": "not reproduced"}
FINDINGS = "findings.json"


def write(
    out: Path, about: Mapping[str, Any], experiments: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write `findings.json`, `report.md` and `report.html`, and return their paths.

    Args:
        out: Directory of the study, with the figures in `figures/`.
        about: Model, data and versions.
        experiments: Documents of the experiments.
        others: Findings of other studies, from `read_findings`, to show beside these.
    """
    findings = [finding for experiment in experiments for finding in experiment["findings"]]
    files.write_json(out / FINDINGS, {"about": about, "findings": findings})
    texts = {
        "report.md": render("report.md.j2", about, experiments, others),
        "report.html": render("report.html.j2", about, experiments, others, out / "figures"),
    }
    for name, text in texts.items():
        files.write_page(out / name, text)
    return [out / FINDINGS, *(out / name for name in texts)]


def render(
    template: str,
    about: Mapping[str, Any],
    experiments: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]] = (),
    figures: Path | None = None,
    place: str = "figures",
) -> str:
    """Return a report as text.

    Args:
        template: File name in `templates/`.
        about: See `write`.
        experiments: See `write`.
        others: See `write`.
        figures: Directory of the figures, for a page that holds them.
        place: Path of that directory as seen from the page, for a page that links to them.
    """

    def embedded(name: str) -> str:
        assert figures is not None
        return "data:image/png;base64," + base64.b64encode((figures / f"{name}.png").read_bytes()).decode()

    findings = [finding for experiment in experiments for finding in experiment["findings"]]
    beside = [_by_id(other) for other in others]
    return templates.render(
        "feathervlm.study",
        template,
        {"estimate": estimate, "cell": _cell, "short": _short, "sentence": _sentence},
        about=about,
        experiments=experiments,
        findings=findings,
        counts=Counter(finding["verdict"] for finding in findings),
        verdicts=VERDICTS,
        others=beside,
        agreement=_agreement(findings, beside) if len(beside) > 1 else [],
        place=place,
        embedded=embedded,
    )


def read_findings(folder: Path) -> dict[str, Any]:
    """Return the findings of another study.

    Raises:
        PruningError: The directory holds none.
    """
    path = folder / FINDINGS
    if not folder.is_dir() or not path.exists():
        raise PruningError(f"There is no finished study in {printable(folder)}, which has no {FINDINGS}; check it.")
    document = files.read_json(path, "run that study again")
    try:
        _by_id(document)
    except (KeyError, TypeError):
        raise PruningError(f"{printable(path)} holds no findings; run that study again.") from None
    found: dict[str, Any] = document
    return found


def _by_id(other: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": other["about"]["model"]["name"], "findings": {one["id"]: one for one in other["findings"]}}


def _agreement(findings: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each claim that all other studies judged, their verdicts and the range of each number.

    Numbers are compared by their order, because their names contain layers, which differ between models of different
    depth. Where two layers of a shallow model coincide, it has fewer numbers, and the claim's numbers are not compared.
    """
    rows = []
    for finding in findings:
        judged = [other["findings"][finding["id"]] for other in others if finding["id"] in other["findings"]]
        if len(judged) < len(others):
            continue
        numbers = [[number["value"] for number in one["measured"].values()] for one in judged]
        columns = zip(*numbers, strict=True) if len(set(map(len, numbers))) == 1 else ()
        ranges = [(min(column), max(column)) for column in columns if None not in column]
        verdicts = Counter(one["verdict"] for one in judged)
        rows.append({"claim": finding["claim"], "verdicts": verdicts, "ranges": ranges, "agree": len(verdicts) == 1})
    return rows


def estimate(number: Mapping[str, float | None]) -> str:
    """Return a value with its interval as text."""
    if number["value"] is None:
        return "none"
    low, high = number["low"], number["high"]
    return f"{number['value']:.3f} [{low:.3f}, {high:.3f}]" if low is not None else f"{number['value']:.3f}"


def _short(number: Mapping[str, float | None]) -> str:
    return "none" if number["value"] is None else f"{number['value']:.3f}"


def _sentence(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _cell(value: Any) -> str:
    return estimate(value) if isinstance(value, Mapping) else str(value)
