"""docs/evaluation.md names every task with its count and every row of the paper with a method that is its own."""

import re
from pathlib import Path

from feathervlm.core.spec import split_specs
from feathervlm.evaluation.paper import MODEL, printed, resolved
from feathervlm.evaluation.tasks import GROUPS, TASKS

TEXT = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()


def test_every_task_with_its_count():
    rows = [re.findall(r"`([a-z0-9+-]+)`", line.split("|")[1]) for line in TEXT.splitlines() if line.startswith("| `")]
    listed = [name for names in rows for name in names if name in TASKS]
    assert set(listed) == set(TASKS)
    for name in GROUPS["feather_suite"]:
        assert re.search(rf"`{re.escape(name)}`.*\b{TASKS[name].count}\b", TEXT), name


def test_methods_of_the_paper_s_rows():
    table = TEXT.split("| row | method |")[1].split("\n\n")[0]
    specs = [spec for cell in re.findall(r"`([^`]+)`", table) for spec in split_specs(cell)]
    known = {resolved(row.method) for row in printed() if row.model == MODEL}
    assert len(specs) == 16
    assert {resolved(spec) for spec in specs} <= known
