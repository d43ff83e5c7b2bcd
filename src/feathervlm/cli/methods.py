"""`feathervlm methods`: prints what the catalogue knows."""

from typing import Annotated

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson
from feathervlm.methods import available, describe, get


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method, or a spec with parameters.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or tell all about one.

    Layers are shown as fractions of the depth: 1/4 is layer 8 of 32.

    Examples:

    \b
    feathervlm methods
    feathervlm methods feather
    feathervlm methods fastv:layer=2,keep=0.5
    feathervlm methods --json
    """
    described = [describe.describe(get(spec)) for spec in ([name] if name else available())]
    if as_json:
        console.print_json(described[0] if name else {"methods": described})
    elif name:
        tables.print_method(described[0])
    else:
        tables.print_methods(described)
