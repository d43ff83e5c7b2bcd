"""`feathervlm run`: reads its options, prints both answers, draws what was kept."""

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson
from feathervlm.core.errors import PruningError
from feathervlm.methods import Method, get
from feathervlm.utils import files


def run(
    model: Annotated[str, typer.Option(metavar="DIR|ID", help="A model directory, or an id on the Hugging Face hub.")],
    image: Annotated[list[Path], typer.Option(metavar="FILE", help="A picture; repeat it for several.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question. Without a chat template: with <image>.")],
    method: Annotated[str, typer.Option(metavar="SPEC", help="As in `feathervlm methods`; none: unpruned only.")],
    overlay: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw what was kept: a panel for each stage, a row for each picture."),
    ] = None,
    as_json: AsJson = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer at most.")] = 64,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs of each kind, after a warm-up; the median counts.")
    ] = 2,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[
        str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.")
    ] = "auto",
    attn: Annotated[
        str, typer.Option(help="sdpa, eager, flash_attention_2 or any other that transformers has.")
    ] = "sdpa",
    strict: Annotated[bool, typer.Option(help="Refuse what cannot be pruned, or else run it unpruned.")] = True,
) -> None:
    """Answer a prompt about pictures unpruned and pruned: both answers, what was kept, what it saved.

    Greedy decoding. Times run from the prepared inputs to the first token and to the last.

    Examples:

    \b
    feathervlm run --model llava-hf/llava-1.5-7b-hf --image cat.jpg
        --prompt "Where is the cat?" --method feather
    feathervlm run --model ./my-llava --image a.png --image b.png
        --prompt "What differs?" --method feather:keep=0.2
        --overlay kept.png --json
    """
    chosen = None if method.strip() == "none" else get(method)
    if overlay is not None:
        _check_overlay(overlay, chosen)
    with console.working("importing transformers") as say:
        from feathervlm.inference.compare import RunRequest
        from feathervlm.inference.compare import run as run_request
        from feathervlm.inference.model_spec import ModelSpec

        spec = ModelSpec(model, device, dtype, attn, max_new_tokens)
        request = RunRequest(spec, tuple(image), prompt, chosen, repeats, strict)
        outcome = run_request(request, draw=overlay is not None, say=say)
    if as_json:
        console.print_json(outcome.to_dict())
    else:
        tables.print_outcome(outcome)
    if overlay is not None and outcome.overlay is not None:
        files.write_whole(overlay, outcome.overlay.save)
    if overlay is not None:
        typer.echo(
            f"wrote {overlay}" if outcome.overlay else f"nothing was pruned, so {overlay} was not written", err=True
        )


def _check_overlay(path: Path, method: Method | None) -> None:
    if method is None:
        raise PruningError(f"--overlay {path} shows what a method kept, and there is none; leave one of the two out.")
    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
        raise PruningError(f"--overlay {path} does not end like a picture; give a name such as kept.png.")
    files.check_target(path, "--overlay")
