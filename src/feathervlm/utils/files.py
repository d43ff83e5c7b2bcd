"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feathervlm.core.errors import PruningError


def check_target(path: Path, option: str) -> None:
    """Raise `PruningError` unless a file can be written at `path`."""
    if path.is_dir():
        raise PruningError(f"{option} {path} is a directory; give a file name.")
    if not path.parent.is_dir():
        raise PruningError(f"{option} {path} cannot be written: there is no directory {path.parent}; make it first.")
    if not os.access(path.parent, os.W_OK):
        raise PruningError(
            f"{option} {path} cannot be written: {path.parent} is write-protected; choose another place."
        )


def make_directory(path: Path, option: str) -> None:
    """Make a directory to write to, or raise `PruningError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PruningError(f"{option} {path} cannot be made ({error.strerror}); give a directory.") from error
    if not os.access(path, os.W_OK):
        raise PruningError(f"{option} {path} is write-protected; choose another place.")


def write_json(path: Path, document: Any) -> None:
    """Write a document for reading, whole or not at all.

    Raises:
        PruningError: If the file cannot be written.
    """
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Raises:
        PruningError: If the file cannot be written.
    """

    def write(draft: Path) -> None:
        draft.write_text(text, encoding="utf-8")

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then move it there, so that no reader ever sees half of it.

    Raises:
        PruningError: If the file cannot be written.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(draft)
        draft.replace(path)
    except OSError as error:
        raise PruningError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)
