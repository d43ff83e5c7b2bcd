"""Where results may be written, checked before anything is computed: nothing of the user's is overwritten unasked."""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from feathervlm.core.errors import PruningError
from feathervlm.utils.files import MARK, brief
from feathervlm.utils.text import printable

LARGEST = 1 << 28
"""Bytes of the largest file that is looked into; results are smaller."""
NAME_MAX = 255
"""Bytes of the longest name of a file on the file systems in use."""
VERSIONS = re.compile(rb'"feathervlm": "[^"]+".{0,200}"transformers": "', re.DOTALL)
"""What `utils.provenance.versions` writes into every JSON document of results."""


def check_file(path: Path, option: str, *, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Refuse a file that cannot be written, is an input, or exists and was not written by this package.

    Args:
        path: The file.
        option: The option that named it.
        inputs: Files that the command reads.
        force: Whether a file of the user's may be replaced.

    Raises:
        PruningError: The file may not be written; the message says why.
    """
    name = f"{option} {printable(path)}"
    try:
        if path.is_dir():
            raise PruningError(f"{name} is a directory; give a file name.")
        if not path.parent.is_dir():
            raise PruningError(
                f"{name} cannot be written: there is no directory {printable(path.parent)}; make it first."
            )
        if not os.access(path.parent, os.W_OK):
            raise PruningError(
                f"{name} cannot be written: {printable(path.parent)} is write-protected; choose another place."
            )
        _check_length(path)
        if not os.path.lexists(path):
            return
        if path.exists() and not path.is_file():
            raise PruningError(f"{name} is a pipe or a device; give the name of a file.")
        if any(same(path, other) for other in inputs) and not force:
            raise PruningError(f"{name} is also read by this command; give another name, or --force to replace it.")
        if not (force or is_ours(path)):
            raise PruningError(
                f"{name} exists and is not a result of feathervlm; give another name, or --force to replace it."
            )
    except PruningError:
        raise
    except (OSError, ValueError) as error:
        raise PruningError(f"{name} cannot be written ({brief(error)}); choose another name.") from None


def check_files(files: Mapping[str, Path | None], *, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Check the files that options name, see `check_file`; no two may be one.

    Raises:
        PruningError: A file may not be written, or two options name the same one.
    """
    given = [(option, path) for option, path in files.items() if path is not None]
    for option, path in given:
        check_file(path, option, inputs=inputs, force=force)
    for place, (option, path) in enumerate(given):
        for other, earlier in given[:place]:
            if same(path, earlier):
                raise PruningError(f"{other} and {option} are both {printable(path)}; give each a file of its own.")


def check_folder(
    folder: Path,
    option: str,
    files: Iterable[str] = (),
    folders: Iterable[str] = (),
    *,
    inputs: Iterable[Path] = (),
    force: bool = False,
) -> None:
    """Refuse a directory in which results cannot be written, see `check_file`; it is not made.

    Args:
        folder: The directory.
        option: The option that named it.
        files: Names of files that will be written to it.
        folders: Names of directories that will be made in it.
        inputs: Files that the command reads.
        force: Whether files of the user's may be replaced.

    Raises:
        PruningError: The directory cannot be made, or a file in it may not be written.
    """
    inputs = list(inputs)
    try:
        _check_length(folder)
        known = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not known.is_dir():
            reason = "File exists" if known == folder else "Not a directory"
            raise PruningError(f"{option} {printable(folder)} cannot be made ({reason}); give a directory.")
        if not os.access(known, os.W_OK):
            raise PruningError(
                f"{option} {printable(folder)}: {printable(known)} is write-protected; choose another place."
            )
        if known != folder:
            return
        for name in folders:
            if os.path.lexists(folder / name) and not (folder / name).is_dir():
                raise PruningError(
                    f"{option} {printable(folder)} has a file {name} where a directory belongs; give another directory."
                )
    except PruningError:
        raise
    except (OSError, ValueError) as error:
        raise PruningError(f"{option} {printable(folder)} cannot be made ({brief(error)}); give a directory.") from None
    for name in files:
        check_file(folder / name, f"{option} {printable(folder)}:", inputs=inputs, force=force)


def is_ours(path: Path) -> bool:
    """Return whether a file was written by this package or holds nothing, so that replacing it loses nothing."""
    if path.stat().st_size > LARGEST:
        return False
    content = path.read_bytes().strip(b"\0")  # a crash leaves null characters
    marked = MARK.encode() in content or MARK.encode("utf-16-be") in content  # the second in PDF
    return not content or marked or (path.suffix == ".json" and bool(VERSIONS.search(content)))


def same(path: Path, other: Path) -> bool:
    """Return whether two paths are one file, also through links."""
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return path.absolute() == other.absolute() or path.resolve() == other.resolve()


def _check_length(path: Path) -> None:
    if "\0" in str(path):
        raise ValueError("it holds a null character")
    if any(len(os.fsencode(part)) > NAME_MAX for part in path.parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
