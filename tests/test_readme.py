"""The README's tables are those that the code and the committed results give."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "tools" / "readme_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for where, names in tables.FILES.items():
        text = (ROOT / where).read_text()
        assert tables.render(text, names, where) == text


def test_files_that_the_readme_names_exist():
    for name in ("docs/kept.png", "results/bench/overhead-cpu.json", "results/embedded/pruning.json", "Makefile"):
        assert (ROOT / name).exists()
