"""`feathervlm models`: prints what the families say of themselves."""

from typing import Annotated

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A family, by its title or by a config's model_type.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the model families that can be pruned, or tell all about one.

    Examples:

    \b
    feathervlm models
    feathervlm models qwen2_5_vl
    feathervlm models --json
    """
    with console.working("importing transformers"):
        from feathervlm.families import describe as listing

        described = [family.to_dict() for family in ([listing.describe(name)] if name else listing.families())]
    if as_json:
        console.print_json(described[0] if name else {"families": described, "refused": listing.UNSUPPORTED})
    elif name:
        tables.print_model(described[0])
    else:
        tables.print_models(described, listing.UNSUPPORTED)
