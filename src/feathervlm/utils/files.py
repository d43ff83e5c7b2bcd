"""Files that are read with one sentence for everything that can be wrong, and written whole or not at all."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from feathervlm.core.errors import PruningError
from feathervlm.utils.text import printable

MARK = "written by feathervlm"
"""Text in pictures and pages of results, by which they are known as such."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_drafts = count()


def brief(error: BaseException) -> str:
    """Return the first sentence of an error without its full stop, of an OSError its reason."""
    reason = error.strerror if isinstance(error, OSError) else None
    text = " ".join(str(reason or error).split()) or type(error).__name__
    return printable(re.split(r"(?<=[.!?])\s", text)[0].rstrip("."))


def read_bytes(path: Path, remedy: str, what: str = "file") -> bytes:
    """Return the content of a file; pipes and devices, which may never end, are not read.

    Args:
        path: The file.
        remedy: What to do if it cannot be read.
        what: What the file is to be.

    Raises:
        PruningError: There is no such file, or it cannot be read.
    """
    name = printable(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise PruningError(f"{name} is a directory; {remedy}.")
        if not stat.S_ISREG(kind):
            raise PruningError(f"{name} is not a regular file, but a pipe or a device; {remedy}.")
        return path.read_bytes()
    except FileNotFoundError:
        raise PruningError(f"There is no {what} {name}; check the path.") from None
    except PruningError:
        raise
    except (OSError, ValueError) as error:  # a ValueError for a path with a null character
        raise PruningError(f"{name} cannot be read ({brief(error)}); {remedy}.") from None


def read_text(path: Path, remedy: str, what: str = "file") -> str:
    """Return the text of a file in UTF-8, without a byte-order mark, see `read_bytes`."""
    return decoded(read_bytes(path, remedy, what), path)


def decoded(content: bytes, path: Path) -> str:
    """Return the text in the content of a file, see `read_text`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PruningError(f"{printable(path)} is not UTF-8 (line {line}); save it as UTF-8.") from None


def read_json(path: Path, remedy: str, kind: type = object) -> Any:
    """Return the document in a JSON file, see `read_bytes`; `kind` is the type that it has to have."""
    content = read_bytes(path, remedy)
    try:
        found = json.loads(content.removeprefix(b"\xef\xbb\xbf"))
        if isinstance(found, kind):
            return found
        why = f"it is a {type(found).__name__} and not a {kind.__name__}"
    except (ValueError, RecursionError) as error:
        why = "it is empty" if not content.strip() else f"it is not valid JSON: {brief(error)}"
    raise PruningError(f"{printable(path)} cannot be read ({why}); {remedy}.")


def make_directory(path: Path) -> None:
    """Make a directory to write to.

    Raises:
        PruningError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: BaseException) -> PruningError:
    """Return the sentence for a file that cannot be written."""
    remedy = "choose another place"
    if isinstance(error, OSError) and error.errno in FULL:
        remedy = "free some space and run the same command again"
    return PruningError(f"{printable(path)} cannot be written ({brief(error)}); {remedy}.")


def write_json(path: Path, document: Any) -> None:
    """Write a document for reading, whole or not at all.

    Raises:
        PruningError: The file cannot be written.
    """
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_page(path: Path, text: str) -> None:
    """Write a page in HTML or Markdown with the mark of results, see `write_text`."""
    write_text(path, f"{text}<!-- {MARK} -->\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Raises:
        PruningError: The file cannot be written.
    """

    def write(draft: Path) -> None:
        draft.write_text(text, encoding="utf-8", errors="replace")  # a text may name files that are not UTF-8

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then move it there, so that no reader ever sees half of it.

    Raises:
        PruningError: The file cannot be written.
    """
    draft = draft_of(path)
    try:
        write(draft)
        draft.replace(path)
    except PruningError:
        raise
    except (OSError, ValueError) as error:  # a ValueError where a format has no pictures of that size
        raise unwritable(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def draft_of(path: Path) -> Path:
    """Return a path beside a file that no other draft has; its name is short, because that of the file may be long."""
    suffix = path.suffix if len(path.suffix) < 10 else ""
    return path.with_name(f".feathervlm.{os.getpid()}.{next(_drafts)}{suffix}")
