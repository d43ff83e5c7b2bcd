"""Options that several commands share, and how their methods are read."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from feathervlm.utils import progress


def _load(paths: list[Path] | None) -> list[Path] | None:
    if paths:
        from feathervlm.methods.base import load

        for path in paths:
            load(path)
    return paths


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
Attention = Annotated[
    str,
    typer.Option(
        "--attn-implementation", "--attn", metavar="NAME", help="sdpa, eager or any other that transformers has."
    ),
]
Background = Annotated[
    str, typer.Option(metavar="COLOUR", help="Colour under transparent parts of pictures, such as white or #a0b0c0.")
]
Batch = Annotated[int | None, typer.Option(min=1, help="Questions at once; default 40 for the embedded model, else 1.")]
Device = Annotated[str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist and are not results of this command.")]
Load = Annotated[
    list[Path] | None,
    typer.Option("--load", metavar="FILE.py", callback=_load, help="Your own methods (docs/add-a-method.md)."),
]
"""The callback loads the files, so a command only has to declare this option."""
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        "--methods",
        metavar="SPEC",
        help="As in `feathervlm methods`, or a saved FILE.json; repeat it, or join specs with commas.",
    ),
]
Model = Annotated[str, typer.Option(metavar="DIR|ID", help="`embedded`, a model directory, or an id on the hub.")]


def read_methods(values: Sequence[str] | None, default: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the specs of a `Methods` option, with `none` as an alias of "unpruned".

    Args:
        values: Values of the option; each may hold several specs.
        default: Specs that stand for no value.

    Raises:
        PruningError: If there is no such method or parameter.
    """
    with progress.spinner("importing transformers"):
        from feathervlm.core.spec import split_specs
        from feathervlm.inference.model_spec import UNPRUNED
        from feathervlm.methods import get

    specs: list[str] = []
    for value in values or default:
        specs += [value] if os.path.isfile(value) else split_specs(value)
    specs = [UNPRUNED if spec == "none" else spec for spec in specs]
    for spec in specs:
        if spec != UNPRUNED:
            get(spec)
    return tuple(specs)


def files_in(*options: Sequence[Path | str] | None) -> list[Path]:
    """Return the values of options that name files, which a command reads and may not overwrite."""
    return [Path(value) for values in options for value in values or () if os.path.isfile(value)]


def read_method(values: Sequence[str] | None, default: str, command: str) -> str:
    """Return the one spec of a `Methods` option.

    Raises:
        PruningError: If there are several, or there is no such method or parameter.
    """
    from feathervlm.core.errors import PruningError

    specs = read_methods(values, [default])
    if len(specs) != 1:
        raise PruningError(f"`{command}` takes one --method, not {len(specs)} ({', '.join(specs)}); give one of them.")
    return specs[0]
