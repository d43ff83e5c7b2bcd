"""`feathervlm diagnose`: reads its options, writes the page, prints a short table and the warnings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from feathervlm.cli import console
from feathervlm.cli.options import AsJson
from feathervlm.methods import get
from feathervlm.utils import files as utils_files

if TYPE_CHECKING:
    from feathervlm.diagnosis.run import Diagnosis

SHOWN = ("kept", "mean_row", "bottom", "border", "hole", "empty", "alike", "prior_overlap", "prior_correlation")


def diagnose(
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your pictures (png, jpg, webp, bmp). Default: drawn scenes.")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="DIR|ID", help="`embedded`, a model directory, or an id on the hub.")
    ] = "embedded",
    method: Annotated[str, typer.Option(metavar="SPEC", help="As in `feathervlm methods`.")] = "feather",
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Asked about every picture. Without a chat template: with <image>."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where page and numbers are written.")] = Path("diagnosis"),
    limit: Annotated[int, typer.Option(min=1, help="Pictures at most, in the order of their names.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes, the random tokens, the intervals.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[
        str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """See what a method keeps of your pictures, and what looks wrong. Needs no labels.

    Where the kept tokens lie, what they leave uncovered, how much they change from picture to picture, and how much
    of it the rotary embedding's decay explains; beside what random tokens would give. Only which tokens stay is looked
    at, not the answers.

    Examples:

    \b
    feathervlm diagnose
    feathervlm diagnose --method fastv:layer=2
    feathervlm diagnose --images photos --model llava-hf/llava-1.5-7b-hf
        --method fastv --prompt "Where is the dog?" --out fastv
    """
    get(method)
    utils_files.make_directory(out, "--out")
    with console.working("importing transformers") as say:
        from feathervlm.diagnosis.run import Request
        from feathervlm.diagnosis.run import diagnose as run

        found = run(
            Request(
                method=method, model=model, images=images, prompt=prompt, limit=limit, seed=seed, device=device,
                dtype=dtype,
            ),
            say,
        )  # fmt: skip
        say("drawing")
        files = found.write(out)
    if as_json:
        console.print_json(found.to_dict() | {"files": [str(path) for path in files]})
    else:
        _print(found, files)


def _print(found: "Diagnosis", files: list[Path]) -> None:
    from feathervlm.diagnosis.findings import grouped

    layers = [f"before layer {stage.layer}" for stage in found.stages]
    columns = [column for layer in layers for column in (layer, "even")]
    table = Table(f"{len(found.seen)} pictures", *columns, show_edge=False, pad_edge=False)
    for name in SHOWN:
        numbers = [stage.numbers.get(name) for stage in found.stages]
        title = next((number.title for number in numbers if number is not None), None)
        if title is not None:
            cells = [
                cell
                for number in numbers
                for cell in (
                    ("", "") if number is None else (str(number), "" if number.even is None else f"{number.even:.2f}")
                )
            ]
            table.add_row(title, *cells)
    console.out.print(table)
    tokens, flops = found.average_tokens.value, found.flops_ratio.value
    typer.echo(f"\n{tokens:.1f} visual tokens per layer, {flops:.0%} of the prefill FLOPs\n")
    for level, texts, remedy in grouped(found.findings):
        for text in texts:
            typer.echo(f"{level}: {text}")
        if remedy:
            typer.echo(f"    {remedy}")
    typer.echo("\nLook at the page:")
    typer.echo(f"    {files[0]}")
