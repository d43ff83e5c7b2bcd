"""The two streams of a command: results on stdout, everything else on stderr, and errors in one sentence."""

import json
from importlib.util import find_spec
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

out = Console(highlight=False, markup=False)


class Commands(TyperGroup):
    """A group of commands in which a user's error is one sentence on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; other exceptions keep their traceback."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            from feathervlm.core.errors import PruningError  # a ValueError; the import would slow down `--help`

            if not isinstance(error, PruningError):
                raise
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(2) from None


def one_line(text: object) -> str:
    """Return the text without line breaks."""
    return " ".join(str(text).split())


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
