"""The README's tables are those that the code and the committed results give."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def load():
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "tools" / "readme_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    return tables


def test_tables_are_up_to_date():
    tables = load()
    for where, names in tables.FILES.items():
        text = (ROOT / where).read_text()
        assert tables.render(text, names, where) == text


def test_files_that_the_readme_names_exist():
    for name in ("docs/kept.png", "results/bench/overhead-cpu.json", "results/study/runs.json", "Makefile"):
        assert (ROOT / name).exists()


def test_generated_pages_are_up_to_date():
    tables = load()
    for where, make in tables.PAGES.items():
        assert make() == (ROOT / where).read_text()
