"""What all commands share at the terminal: one-sentence errors, one JSON document, a spinner, files written whole.

Results go to stdout, everything else to stderr. Knows no command.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from feathervlm.core.errors import PruningError

out = Console(highlight=False, markup=False)


err = Console(stderr=True, highlight=False, markup=False)


class Commands(TyperGroup):
    """A group of commands in which a user's error is one sentence on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; other exceptions keep their traceback."""
        try:
            return super().invoke(ctx)
        except PruningError as error:
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(2) from None


def one_line(text: object) -> str:
    """The text without line breaks."""
    return " ".join(str(text).split())


def print_json(document: Any) -> None:
    """Print the one document of a command on one line, in ASCII so that any terminal takes it."""
    typer.echo(json.dumps(document, allow_nan=False))


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on stderr if that is a terminal, and let nothing but our own warnings through.

    Yields:
        A function that changes the spinner's text.
    """
    # A lazy spinner, because it draws while runs are timed.
    with err.status(Text(what), refresh_per_second=4) as spinner, redirect_stdout(sys.stderr), own_warnings():
        yield lambda now: spinner.update(Text(now))


@contextmanager
def counting(unit: str, shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on stderr, if that is a terminal, with the time that is left; warnings as `working` does.

    Args:
        unit: what is counted.
        shown: False for all but one of several processes that share a terminal.

    Yields:
        A function that is told what happens, how many are done, and how many there are (0: not known yet).
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
    )  # fmt: skip
    with own_warnings(), Progress(*columns, console=err, disable=not (shown and err.is_terminal)) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)


@contextmanager
def own_warnings() -> Iterator[None]:
    """Show our own warnings, each once, as a line on stderr, and no others."""
    shown = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            typer.echo(f"warning: {one_line(message)}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="feathervlm")
        warnings.showwarning = show
        yield
