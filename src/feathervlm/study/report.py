"""The report of a study: Markdown beside its figures, and one HTML page that holds everything.

Reads what the experiments wrote, so that the report of a study can be made again without asking a model. Knows no
experiment and no method.
"""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from feathervlm.core.errors import PruningError
from feathervlm.utils import files

VERDICTS = {"reproduced": "reproduced", "partly": "partly reproduced", "not": "not reproduced"}
FINDINGS = "findings.json"


def write(
    out: Path, about: Mapping[str, Any], experiments: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write `findings.json`, `report.md` and `report.html` to `out`.

    Args:
        out: where the figures are in `figures/`.
        about: the model, the data, versions.
        experiments: what each of them wrote.
        others: findings of other studies, from `read_findings`, to show beside these.

    Returns:
        The files.
    """
    findings = [finding for experiment in experiments for finding in experiment["findings"]]
    files.write_json(out / FINDINGS, {"about": about, "findings": findings})
    texts = {
        "report.md": render("report.md.j2", about, experiments, others),
        "report.html": render("report.html.j2", about, experiments, others, out / "figures"),
    }
    for name, text in texts.items():
        files.write_whole(out / name, lambda draft, text=text: _write(draft, text))  # type: ignore[misc]  # lambda
    return [out / FINDINGS, *(out / name for name in texts)]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def render(
    template: str,
    about: Mapping[str, Any],
    experiments: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]] = (),
    figures: Path | None = None,
    place: str = "figures",
) -> str:
    """A report as text.

    Args:
        template: its name in `templates/`.
        about: as for `write`.
        experiments: as for `write`.
        others: as for `write`.
        figures: folder of the figures, to put them into the page.
        place: where the page finds them otherwise.
    """
    # Only the page for browsers is markup; what a model or a file is called must not become part of it.
    escape = template.endswith(".html.j2")
    environment = Environment(
        loader=PackageLoader("feathervlm.study"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"estimate": estimate, "cell": _cell, "short": _short, "sentence": _sentence}

    def embedded(name: str) -> str:
        assert figures is not None
        return "data:image/png;base64," + base64.b64encode((figures / f"{name}.png").read_bytes()).decode()

    findings = [finding for experiment in experiments for finding in experiment["findings"]]
    beside = [_beside(other) for other in others]
    return environment.get_template(template).render(
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
    """The findings of another study.

    Raises:
        PruningError: if there are none in that folder.
    """
    path = folder / FINDINGS
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PruningError(f"There is no finished study in {folder}: {path.name} cannot be read ({why}).") from error
    return found


def _beside(other: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": other["about"]["model"]["name"], "findings": {one["id"]: one for one in other["findings"]}}


def _agreement(findings: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each claim that all other studies judged: their verdicts, and how far their numbers lie apart.

    Numbers are compared by place, since their names tell layers, which are others at other depths; a study of so few
    layers that two of them fall together has fewer numbers, and then none are compared.
    """
    found = []
    for finding in findings:
        theirs = [other["findings"][finding["id"]] for other in others if finding["id"] in other["findings"]]
        if len(theirs) < len(others):
            continue
        numbers = [[one["value"] for one in their["measured"].values()] for their in theirs]
        columns = zip(*numbers, strict=True) if len(set(map(len, numbers))) == 1 else ()
        ranges = [(min(column), max(column)) for column in columns if None not in column]
        verdicts = Counter(their["verdict"] for their in theirs)
        found.append({"claim": finding["claim"], "verdicts": verdicts, "ranges": ranges, "agree": len(verdicts) == 1})
    return found


def estimate(found: Mapping[str, float | None]) -> str:
    """A value with its interval."""
    if found["value"] is None:
        return "none"
    low, high = found["low"], found["high"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]" if low is not None else f"{found['value']:.3f}"


def _short(found: Mapping[str, float | None]) -> str:
    return "none" if found["value"] is None else f"{found['value']:.3f}"


def _sentence(text: str) -> str:
    """The text with a capital at its beginning, and the others as they are."""
    return text[:1].upper() + text[1:]


def _cell(value: Any) -> str:
    return estimate(value) if isinstance(value, Mapping) else str(value)
