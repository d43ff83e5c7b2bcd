"""`feathervlm models`: the model families, as they describe themselves."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson
from feathervlm.utils import progress

DESCRIBED = Path(__file__).parent / "data/models.json"
"""The families, written by scripts/generate_docs.py, because describing them takes transformers."""


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A family, by its title or by the model_type of a config.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the supported model families, or describe one.

    Examples:

    \b
    feathervlm models
    feathervlm models qwen2_5_vl
    feathervlm models --json
    """
    known = json.loads(DESCRIBED.read_text())
    if name is not None:
        described = next((one for one in known["families"] if _is_called(one, name)), None) or _describe(name)
        if as_json:
            console.print_json(described)
        else:
            _print_one(described)
    elif as_json:
        console.print_json(known)
    else:
        _print(known["families"], known["refused"])


def _is_called(family: dict[str, Any], name: str) -> bool:
    return name in family["model_types"] or name.lower() == family["title"].lower()


def _describe(name: str) -> dict[str, Any]:
    with progress.spinner("importing transformers"):
        from feathervlm.families import describe

        return describe.describe(name).to_dict()


def _print(families: list[dict[str, Any]], refused: dict[str, str]) -> None:
    table = tables.table("family", "model types", "input", "grids of a picture")
    table.columns[1].no_wrap = True  # a name in two lines cannot be copied
    for family in families:
        table.add_row(family["title"], "\n".join(family["model_types"]), ", ".join(family["input"]), family["geometry"])
    tables.show(table)
    typer.echo("\nRefused:")
    for reason in dict.fromkeys(refused.values()):
        typer.echo(f"    {', '.join(kind for kind in refused if refused[kind] == reason)}: {reason}")
    typer.echo("\nAll about one: feathervlm models NAME")


def _print_one(family: dict[str, Any]) -> None:
    rows = {
        "model types": ", ".join(family["model_types"]) or "none of its own",
        "input": ", ".join(family["input"]),
        "grids": family["geometry"],
        "decoder": family["decoder"],
        "caches": ", ".join(family["caches"]),
        "attention": f"{', '.join(family['attention'])} (tested); flash attention is untested",
        "boxes": family["box_format"] or "no convention of its own",
        "limits": family["limits"] or "none known",
    }
    typer.echo(f"{family['title']}\n\n{family['about']}\n")
    for name, value in rows.items():
        typer.echo(f"    {name + ':':<13}{value}")
