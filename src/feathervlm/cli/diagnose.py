"""`feathervlm diagnose`: where the tokens lie that a method keeps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import (
    AsJson,
    Attention,
    Background,
    Device,
    Dtype,
    Force,
    Load,
    Methods,
    Model,
    files_in,
    read_methods,
)
from feathervlm.embedded.assets import SHIPPED, default_methods
from feathervlm.utils import progress
from feathervlm.utils.text import printable

if TYPE_CHECKING:
    from feathervlm.diagnosis.result import Diagnosis

WRITTEN = ("diagnosis.html", "diagnosis.json")
SHOWN = ("kept", "mean_row", "bottom", "border", "hole", "empty", "alike", "prior_overlap", "prior_correlation")


def diagnose(
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Your pictures: all formats that Pillow opens. Default: drawn scenes."),
    ] = None,
    model: Model = SHIPPED,
    method: Methods = None,
    load: Load = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Asked about every picture. Without a chat template: with <image>."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where page and numbers are written.")] = Path("diagnosis"),
    limit: Annotated[int, typer.Option(min=1, help="Pictures at most, in the order of their names.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes, the random tokens and the intervals.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = "sdpa",
    background: Background = "white",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show what a method keeps of your pictures.

    Without --method: FEATHER. Shows where the kept tokens lie, what they leave uncovered, how much they change from
    picture to picture, and how much of it the decay of the rotary embedding explains, beside what random tokens would
    give. Answers are not read. With several methods each has its own directory in --out.

    Examples:

    \b
    feathervlm diagnose
    feathervlm diagnose --method fastv:layer=2 --method feather
    feathervlm diagnose --images photos --model llava-hf/llava-1.5-7b-hf
        --method fastv --prompt "Where is the dog?" --out fastv
    """
    console.require("report", "matplotlib", "jinja2")
    specs = read_methods(method, default_methods(model)[1:])
    with progress.spinner("importing transformers") as say:
        from feathervlm.core.errors import PruningError
        from feathervlm.diagnosis.images import passed_over
        from feathervlm.diagnosis.run import diagnose_methods
        from feathervlm.evaluation.store import stem
        from feathervlm.inference.model_spec import UNPRUNED
        from feathervlm.utils.outputs import check_folder

        if UNPRUNED in specs:
            raise PruningError(
                "diagnose shows what a method keeps, and the unpruned model keeps everything; leave it out."
            )
        folders = [out] if len(specs) == 1 else [out / stem(spec) for spec in specs]
        for folder in folders:
            check_folder(folder, "--out", WRITTEN, inputs=files_in(load, method), force=force)
        diagnoses = diagnose_methods(
            specs, say, model=model, images=images, prompt=prompt, limit=limit, seed=seed, device=device, dtype=dtype,
            attention=attention, background=background,
        )  # fmt: skip
        say("drawing")
        written = [diagnosis.write(folder) for diagnosis, folder in zip(diagnoses, folders, strict=True)]
    for sentence in passed_over(images):
        typer.echo(f"warning: {sentence}.", err=True)
    if as_json:
        documents = [
            diagnosis.to_dict() | {"files": [str(path) for path in files]}
            for diagnosis, files in zip(diagnoses, written, strict=True)
        ]
        console.print_json(documents[0] if len(documents) == 1 else {"diagnoses": documents})
        return
    for diagnosis, files in zip(diagnoses, written, strict=True):
        if len(specs) > 1:
            typer.echo(f"{diagnosis.about['method']}\n")
        _print(diagnosis, files)


def _print(diagnosis: "Diagnosis", files: list[Path]) -> None:
    from feathervlm.diagnosis.findings import grouped

    layers = [f"before layer {stage.layer}" for stage in diagnosis.stages]
    columns = [column for layer in layers for column in (layer, "even")]
    table = tables.table(f"{len(diagnosis.observations)} pictures", *columns)
    for name in SHOWN:
        numbers = [stage.numbers.get(name) for stage in diagnosis.stages]
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
    tables.show(table)
    tokens, flops = diagnosis.average_tokens.value, diagnosis.flops_ratio.value
    typer.echo(f"\n{tokens:.1f} visual tokens per layer, {flops:.0%} of the prefill FLOPs\n")
    for level, texts, remedy in grouped(diagnosis.findings):
        for text in texts:
            typer.echo(f"{level}: {text}")
        if remedy:
            typer.echo(f"    {remedy}")
    typer.echo("\nLook at the page:")
    typer.echo(f"    {printable(files[0])}")
