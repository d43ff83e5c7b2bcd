"""Run the notebooks of the documentation and store what their cells print and show.

Counters, times, versions and messages on stderr are not stored, so that a notebook changes only if its text or its
results do. Pictures are stored as JPEG, which is a tenth of their PNG.

Example: python scripts/run_notebooks.py docs/notebooks/add-a-method.ipynb
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
TIMEOUT = 600
"""Seconds that a cell may take."""


def run(path: Path) -> Any:
    """Return a notebook with the outputs of a run in an empty directory.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises an error.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=TIMEOUT, coalesce_streams=True, record_timing=False, resources=where).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_stored(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _stored(output: Any) -> Any:
    """Return an output without its counter, and with one kind of picture."""
    if output.output_type == "execute_result":
        output.execution_count = None
    if "image/jpeg" in output.get("data", {}):
        output.data.pop("image/png", None)
    return output


def outputs(notebook: Any) -> list[list[str]]:
    """Return for each code cell what it prints and shows as text."""
    return [
        [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def main() -> None:
    """Read the command line, and run the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*", default=sorted(FOLDER.glob("*.ipynb")), help="default: all")
    for path in parser.parse_args().paths:
        nbformat.write(run(path), path)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
