"""`feathervlm convert-prismatic`: a Prismatic checkpoint as a LLaVA model directory."""

from pathlib import Path
from typing import Annotated

import typer

from feathervlm.cli import console
from feathervlm.cli.options import AsJson
from feathervlm.utils import progress


def convert_prismatic(
    checkpoint_dir: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT_DIR", help="With config.json and checkpoints/latest-checkpoint.pt.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model directory to write.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With the language model's tokenizer.json. Without it, the error names the one to fetch.",
        ),
    ] = None,
    vision: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Weights of the vision encoder, from timm or transformers. Not for checkpoints that trained it.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is not empty.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a Prismatic checkpoint to a LLaVA directory.

    The directory holds the weights, the processor and the prompt template, and loads with transformers alone. The
    checkpoint must have one SigLIP or CLIP encoder and a two-layer projector, as those of the FEATHER paper. Nothing is
    downloaded.

    Examples:

    \b
    feathervlm convert-prismatic prism-siglip-controlled+7b prism-siglip
        --vision siglip-so400m-patch14-384 --tokenizer Llama-2-7b-hf
    feathervlm convert-prismatic full-ft-one-stage+7b full-ft
        --tokenizer llava-1.5-7b-hf --json
    """
    with progress.spinner("importing transformers") as say:
        from feathervlm.integrations.prismatic import PrismaticFiles, convert

        made = convert(PrismaticFiles(checkpoint_dir, tokenizer, vision), out, force=force, say=say)
    if as_json:
        console.print_json(made.to_dict())
        return
    facts = made.facts
    typer.echo(f"{facts.model}: {facts.vision_id} ({facts.vision.patches} tokens) and {facts.llm_id}, {facts.resize}")
    typer.echo(f"{made.tensors} tensors in {made.dtype}; {len(made.unused)} tensors of the vision weights are not used")
    for note in made.notes:
        typer.echo(f"note: {note}")
    typer.echo("\nTry it:")
    typer.echo(f'    feathervlm run --model {out} --image cat.jpg --prompt "Where is the cat?" --method feather')
