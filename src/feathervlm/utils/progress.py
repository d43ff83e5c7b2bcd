"""Progress of long work: the callback types, a spinner and a bar at the terminal."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from feathervlm.utils.text import printable

Say = Callable[[str], None]
"""Called with what happens now."""

Progress = Callable[[str, int, int], None]
"""Called with what happens now, how many are done, and how many there are (0 if that is not known yet)."""


@contextmanager
def spinner(what: str) -> Iterator[Say]:
    """Show a spinner on stderr if that is a terminal, and of all warnings only those of this package.

    Yields:
        A callback that changes the text of the spinner.
    """
    from rich.console import Console
    from rich.text import Text

    err = Console(stderr=True, highlight=False, markup=False)
    # Four frames per second, because the spinner also draws while runs are timed.
    with err.status(Text(what), refresh_per_second=4) as status, redirect_stdout(sys.stderr), own_warnings():
        yield lambda now: status.update(Text(printable(now)))


@contextmanager
def bar(unit: str, shown: bool = True) -> Iterator[Progress]:
    """Show a progress bar with the remaining time on stderr if that is a terminal, and warnings as `spinner` does.

    Args:
        unit: Name of what is counted, in the plural.
        shown: False in all but one of several processes that share a terminal.

    Yields:
        A callback that moves the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    err = Console(stderr=True, highlight=False, markup=False)
    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.description}", markup=False),
    )  # fmt: skip
    with own_warnings(), Bar(*columns, console=err, disable=not (shown and err.is_terminal)) as drawn:
        task = drawn.add_task("", total=None)
        yield lambda what, done, total: drawn.update(
            task, description=printable(what), completed=done, total=total or None
        )


@contextmanager
def own_warnings() -> Iterator[None]:
    """Print each warning of this package once, as a line on stderr, and ignore all other warnings."""
    shown = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f"warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="feathervlm")
        warnings.showwarning = show
        yield
