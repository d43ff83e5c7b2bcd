"""`feathervlm diagnose`: where the tokens lie that a method keeps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from feathervlm.cli import console
from feathervlm.cli.options import AsJson, split_specs
from feathervlm.embedded.assets import SHIPPED
from feathervlm.methods import get
from feathervlm.utils import files as utils_files
from feathervlm.utils import progress

if TYPE_CHECKING:
    from feathervlm.diagnosis.result import Diagnosis

SHOWN = ("kept", "mean_row", "bottom", "border", "hole", "empty", "alike", "prior_overlap", "prior_correlation")


def diagnose(
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your pictures (png, jpg, webp, bmp). Default: drawn scenes.")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="DIR|ID", help="`embedded`, a model directory, or an id on the hub.")
    ] = SHIPPED,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", "--methods", metavar="SPEC", help="As in `feathervlm methods`; repeat it for a page of each."
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Asked about every picture. Without a chat template: with <image>."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where page and numbers are written.")] = Path("diagnosis"),
    limit: Annotated[int, typer.Option(min=1, help="Pictures at most, in the order of their names.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes, the random tokens and the intervals.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[
        str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.")
    ] = "auto",
    attention: Annotated[
        str,
        typer.Option(
            "--attn-implementation", "--attn", metavar="NAME", help="sdpa, eager or any other that transformers has."
        ),
    ] = "sdpa",
    as_json: AsJson = False,
) -> None:
    """See what a method keeps of your pictures, and what looks wrong. Needs no labels.

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
    specs = [spec for value in method or ["feather"] for spec in split_specs(value)]
    for spec in specs:
        get(spec)
    utils_files.make_directory(out, "--out")
    with progress.spinner("importing transformers") as say:
        from feathervlm.diagnosis.run import diagnose_methods
        from feathervlm.evaluation.store import stem

        diagnoses = diagnose_methods(
            specs, say, model=model, images=images, prompt=prompt, limit=limit, seed=seed, device=device, dtype=dtype,
            attention=attention,
        )  # fmt: skip
        say("drawing")
        folders = [out] if len(specs) == 1 else [out / stem(spec) for spec in specs]
        written = [diagnosis.write(folder) for diagnosis, folder in zip(diagnoses, folders, strict=True)]
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
    table = Table(f"{len(diagnosis.observations)} pictures", *columns, show_edge=False, pad_edge=False)
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
    console.out.print(table)
    tokens, flops = diagnosis.average_tokens.value, diagnosis.flops_ratio.value
    typer.echo(f"\n{tokens:.1f} visual tokens per layer, {flops:.0%} of the prefill FLOPs\n")
    for level, texts, remedy in grouped(diagnosis.findings):
        for text in texts:
            typer.echo(f"{level}: {text}")
        if remedy:
            typer.echo(f"    {remedy}")
    typer.echo("\nLook at the page:")
    typer.echo(f"    {files[0]}")
