"""Helpers for tables and text at the terminal that several commands use."""

from rich.console import Console
from rich.table import Table

from feathervlm.cli import console


def table(*columns: str) -> Table:
    """Return an empty table with these columns."""
    return Table(*columns, show_edge=False, pad_edge=False)


def show(filled: Table, whole: bool = False) -> None:
    """Print a table on stdout.

    Args:
        filled: Table to print.
        whole: True for lines that may be wider than the terminal, where cells would be cut otherwise.
    """
    (Console(highlight=False, markup=False, width=1000) if whole else console.out).print(filled)


def printable(text: str) -> str:
    """Return the text without control characters, which a model could send to the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
