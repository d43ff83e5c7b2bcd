"""The two streams of a command: results on stdout, everything else on stderr, and errors in one sentence."""

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from feathervlm.utils.text import printable

out = Console(highlight=False, markup=False)


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of a disk that a command cannot do anything about."""


class Commands(TyperGroup):
    """A group of commands in which a user's error is one sentence on stderr and exit code 2."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Read the options before the name of a command."""
        with _refusals():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; other exceptions keep their traceback."""
        with _refusals():
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f" to {error.filename}" if error.filename else ""
        _refuse(f"The output cannot be written{where} ({error.strerror}); free some space and run the command again.")
    except ValueError as error:
        from feathervlm.core.errors import PruningError  # a ValueError; the import would slow down `--help`

        if not isinstance(error, PruningError):
            raise
        _refuse(error)
    except Exception as error:
        wrong: Any = error  # of a class of click, which typer keeps in a private module
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":  # which shows the help
            raise
        context = getattr(error, "ctx", None)
        command = " ".join(["feathervlm", *(context.command_path.split()[1:] if context else [])])
        _refuse(f"{wrong.format_message().rstrip('.')}; see {command} --help.")


def _refuse(reason: object) -> None:
    typer.echo(f"error: {one_line(reason)}", err=True)
    raise typer.Exit(2) from None


def one_line(text: object) -> str:
    """Return the text without line breaks, so that every terminal can show it."""
    return printable(" ".join(str(text).split()))


def require(extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed, before a command starts to work.

    Raises:
        PruningError: If one is missing.
    """
    missing = next((module for module in modules if find_spec(module) is None), None)
    if missing is not None:
        from feathervlm.core.errors import PruningError

        raise PruningError(f"This needs {missing}, which is not installed; run pip install 'feathervlm[{extra}]'.")


def print_json(document: Any) -> None:
    """Print the one document of a command on one line, in ASCII so that every terminal can show it."""
    typer.echo(json.dumps(document, allow_nan=False))
