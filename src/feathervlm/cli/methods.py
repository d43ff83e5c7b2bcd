"""`feathervlm methods`: the pruning methods, as they describe themselves."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson, Load
from feathervlm.utils import progress
from feathervlm.utils.provenance import plugins

DESCRIBED = Path(__file__).parent / "data/methods.json"
"""The methods of this package, written by scripts/generate_docs.py, because describing them takes torch."""


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method, or a spec with parameters.")] = None,
    load: Load = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or describe one.

    Layers are shown as fractions of the depth: 1/4 is layer 8 of 32.

    Examples:

    \b
    feathervlm methods
    feathervlm methods feather
    feathervlm methods fastv:layer=2,keep=0.5
    feathervlm methods --load mine.py
    feathervlm methods --json
    """
    known = {method["name"]: method for method in json.loads(DESCRIBED.read_text())["methods"]}
    if name is not None:
        described = known.get(name) or _describe(name)
        if as_json:
            console.print_json(described)
        else:
            _print_one(described)
        return
    if load or plugins("feathervlm.methods"):
        known |= _others(known)
    listed = [known[each] for each in sorted(known)]
    if as_json:
        console.print_json({"methods": listed})
    else:
        _print(listed)


def _describe(spec: str) -> dict[str, Any]:
    with progress.spinner("importing torch"):
        from feathervlm.methods import describe, get

        return describe.describe(get(spec))


def _others(known: dict[str, Any]) -> dict[str, Any]:
    with progress.spinner("importing torch"):
        from feathervlm.methods import available

        names = [name for name in available() if name not in known]
    return {name: _describe(name) for name in names}


def _print(described: list[dict[str, Any]]) -> None:
    table = tables.table("method", "idea", "prunes at", "paper")
    for method in described:
        stages = ", ".join(stage["at"] for stage in method["stages"])
        table.add_row(method["name"], method["summary"], stages, method["paper"])
    tables.show(table)
    typer.echo("\nFractions are of the depth: 1/4 is layer 8 of 32. All about one: feathervlm methods NAME")


def _print_one(method: dict[str, Any]) -> None:
    lines = [f"{method['name']}  ({method['paper']})", "", method["doc"], "", "Parameters:"]
    lines += [
        f"    {p['name']}: {p['type']}" + (f", default {p['default']}" if p["default"] is not None else "")
        for p in method["parameters"]
    ] or ["    none"]
    lines += ["", "Stages, on a model of 32 layers and an image of 24 x 24 tokens:"]
    for stage in method["stages"]:
        kept = f"{'' if stage['exact'] else 'about '}{stage['tokens_of_576']} of 576 tokens stay"
        merged = ", the others merged into them" if stage["merged"] else ""
        moved = "" if stage["positions"] == "preserve" else f", positions: {stage['positions']}"
        cut = "" if stage["cache"] == "later" else ", and in the caches of the layers before"
        lines.append(f"    at {stage['at']} (layer {stage['layer_of_32']}): {kept}{merged}{moved}{cut}")
    if method["encoder"]:
        counts = method["encoder"]
        lines += ["", f"Vision encoder, of {len(counts)} layers and as many patches:"]
        lines += [
            f"    {counts[0]} enter the first layer, {counts[-1]} the last, {sum(counts) / len(counts):.1f} on average"
        ]
    lines += ["", "Needs:", *(f"    {need}" for need in method["needs"])]
    lines += ["", f"Needs text: {_yes(method['needs_text'])}"]
    lines += [f"Number of kept tokens known beforehand: {_yes(method['count_known'])}"]
    lines += ["", "Examples:", *(f"    --method {_quoted(spec)}" for spec in method["examples"])]
    typer.echo("\n".join(lines))


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _quoted(spec: str) -> str:
    return f'"{spec}"' if "(" in spec else spec
