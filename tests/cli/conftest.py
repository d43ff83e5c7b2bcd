"""The example of docs/add-a-method.md as a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from user_methods import EXAMPLE, unchanged_registry


@pytest.fixture
def column(tmp_path: Path) -> Iterator[Path]:
    """A file with the method `with-column`, whose registration ends with the test."""
    path = tmp_path / "column.py"
    path.write_text(EXAMPLE)
    with unchanged_registry():
        yield path
