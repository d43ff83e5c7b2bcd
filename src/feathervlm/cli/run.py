"""`feathervlm run`: one prompt, answered unpruned and pruned."""

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
    read_method,
)
from feathervlm.embedded.assets import SHIPPED, default_methods
from feathervlm.utils import progress

if TYPE_CHECKING:
    from feathervlm.inference.compare import RunResult


def run(
    model: Model = SHIPPED,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A picture; repeat it for several.")] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The question. Without a chat template: with <image>.")
    ] = None,
    method: Methods = None,
    load: Load = None,
    overlay: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw what was kept: a panel for each stage, a row for each picture."),
    ] = None,
    as_json: AsJson = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer at most.")] = 64,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs of each kind, after a warm-up; the median counts.")
    ] = 2,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = "sdpa",
    strict: Annotated[bool, typer.Option(help="Refuse what cannot be pruned, or else run it unpruned.")] = True,
    background: Background = "white",
    force: Force = False,
) -> None:
    """Answer a prompt about pictures unpruned and pruned.

    Shows both answers, what was kept and what it saved. Decoding is greedy. Times run from the prepared inputs to the
    first token and to the last. Without --method the model is pruned with FEATHER; `--method none` runs it unpruned
    only.

    Examples:

    \b
    feathervlm run --image scene.png --prompt "where is the red circle ?"
    feathervlm run --model llava-hf/llava-1.5-7b-hf --image cat.jpg
        --prompt "Where is the cat?" --method feather
    feathervlm run --model ./my-llava --image a.png --image b.png
        --prompt "What differs?" --method feather:keep=0.2
        --overlay kept.png --json
    """
    spec = read_method(method, default_methods(model)[1], "run")
    with progress.spinner("importing transformers") as say:
        from feathervlm.core.errors import PruningError
        from feathervlm.inference.compare import RunRequest
        from feathervlm.inference.compare import run as run_request
        from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
        from feathervlm.methods import get
        from feathervlm.utils import files, picture_formats

        if not image or prompt is None:
            missing = [name for name, value in (("--image", image), ("--prompt", prompt)) if not value]
            raise PruningError(f"There is no {' and no '.join(missing)}; give a picture and a question about it.")
        chosen = None if spec == UNPRUNED else get(spec)
        if overlay is not None:
            _check_overlay(overlay, spec != UNPRUNED, files_in(image, load, method), force)
        model_spec = ModelSpec(model, device, dtype, attention, max_new_tokens)
        request = RunRequest(model_spec, tuple(image), prompt, chosen, repeats, strict, background)
        outcome = run_request(request, draw=overlay is not None, say=say)
    drawn = outcome.overlay
    if overlay is not None and drawn is not None:
        files.write_whole(overlay, lambda draft: picture_formats.write(drawn, draft))
    if as_json:
        console.print_json(outcome.to_dict())
    else:
        _print(outcome)
    if overlay is not None:
        typer.echo(
            console.one_line(f"wrote {overlay}" if drawn else f"nothing was pruned, so {overlay} was not written"),
            err=True,
        )


def _check_overlay(path: Path, pruned: bool, inputs: list[Path], force: bool) -> None:
    from feathervlm.core.errors import PruningError
    from feathervlm.utils import outputs, picture_formats

    if not pruned:
        raise PruningError(f"--overlay {path} shows what a method kept, and there is none; leave one of the two out.")
    picture_formats.check_suffix(path, "--overlay")
    outputs.check_file(path, "--overlay", inputs=inputs, force=force)


def _print(outcome: "RunResult") -> None:
    unpruned, pruned = outcome.unpruned, outcome.pruned
    typer.echo(f"unpruned: {tables.printable(unpruned.text)}")
    if pruned is not None:
        typer.echo(f"pruned:   {tables.printable(pruned.text)}\n\n{outcome.report}")
    table = tables.table("", "unpruned", *(["pruned", "ratio"] if pruned else []))
    for name, key in (("first token", "first_token_seconds"), ("whole answer", "seconds")):
        before, after = (one and getattr(one, key) for one in (unpruned, pruned))
        table.add_row(name, f"{before:.3f} s", *([f"{after:.3f} s", f"{after / before:.0%}"] if after else []))
    table.add_row("new tokens", str(unpruned.tokens), *([str(pruned.tokens)] if pruned else []))
    typer.echo()
    tables.show(table)
    if pruned is not None and not outcome.gain:
        typer.echo(
            f"\nThere was no gain: the first token took {pruned.first_token_seconds:.3f} s pruned and "
            f"{unpruned.first_token_seconds:.3f} s unpruned. Pruning pays where prefill is the work: many visual "
            "tokens, a large model, a large batch."
        )
