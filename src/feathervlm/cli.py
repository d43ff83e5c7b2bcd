"""The command line. Every sub-command prints its result on stdout, as one JSON document with --json.

Only reads arguments and prints: what a method is, `catalogue` knows; how a model is run, `running` does, which is
imported when a model is run.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from feathervlm import catalogue, printing, terminal
from feathervlm.core.errors import PruningError
from feathervlm.methods import Method, available, get

app = typer.Typer(
    cls=terminal.Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]


def main() -> None:
    """The console entry point."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an answer may hold characters that a terminal cannot show
    app(prog_name="feathervlm")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"feathervlm {version('feathervlm')}")
        raise typer.Exit


@app.callback()
def about(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Prune visual tokens of vision-language models.

    Examples:

    \b
    feathervlm demo
    feathervlm methods
    feathervlm models
    feathervlm run --model llava-hf/llava-1.5-7b-hf --image cat.jpg
        --prompt "Where is the cat?" --method feather
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where pictures and numbers are written.")] = Path("demo"),
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own picture; needs --prompt.")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Your own question.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Another model than the embedded one; no benchmark then.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="SPEC", help="What to compare; repeat it. Default: FastV and FEATHER.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which scene, which benchmark questions.")] = 0,
    n: Annotated[int, typer.Option(min=0, help="Benchmark questions per task; 0: no benchmark.")] = 40,
    as_json: AsJson = False,
) -> None:
    """Watch FastV and FEATHER prune a small trained model: pictures, answers, a benchmark.

    The model comes with the package; nothing is downloaded. About a minute on two cores.

    Examples:

    \b
    feathervlm demo
    feathervlm demo --seed 3 --method feather --method fastv:layer=3,keep=0.1
    feathervlm demo --image scene.png --prompt "where is the red circle ?"
    feathervlm demo --model llava-hf/llava-1.5-7b-hf --image cat.jpg --prompt "Where is the cat?"
    """
    specs = tuple(method or ())
    for spec in specs:
        get(spec)
    terminal.make_directory(out, "--out")
    with terminal.working("importing transformers") as say:
        from feathervlm.demo import Wish, show

        shown = show(Wish(image, prompt, model, specs, seed, n), say=say)
    for path in out.glob("[0-9]-*.png"):
        path.unlink()  # of an earlier run with other methods
    written = {out / "overview.png": shown.overview, out / "scene.png": shown.picture}
    written |= {
        out / f"{number}-{spec.split(':')[0]}.png": view for number, (spec, view) in enumerate(shown.pictures.items())
    }
    for path, picture in written.items():
        terminal.write_whole(path, picture.save)
    terminal.write_json(out / "results.json", shown.to_dict())
    if as_json:
        terminal.print_json(shown.to_dict() | {"files": [str(path) for path in (*written, out / "results.json")]})
    else:
        printing.print_show(shown, [*written, out / "results.json"])


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method, or a spec with parameters.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or tell all about one.

    Layers are shown as fractions of the depth: 1/4 is layer 8 of 32.

    Examples:

    \b
    feathervlm methods
    feathervlm methods feather
    feathervlm methods fastv:layer=2,keep=0.5
    feathervlm methods --json
    """
    described = [catalogue.describe(get(spec)) for spec in ([name] if name else available())]
    if as_json:
        terminal.print_json(described[0] if name else {"methods": described})
    elif name:
        printing.print_method(described[0])
    else:
        printing.print_methods(described)


@app.command()
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
    with terminal.working("importing transformers"):
        from feathervlm import models as listing

        described = [family.to_dict() for family in ([listing.describe(name)] if name else listing.families())]
    if as_json:
        terminal.print_json(described[0] if name else {"families": described, "refused": listing.REFUSED})
    elif name:
        printing.print_model(described[0])
    else:
        printing.print_models(described, listing.REFUSED)


@app.command()
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
    with terminal.working("importing transformers") as say:
        from feathervlm.running import Request
        from feathervlm.running import run as run_request

        request = Request(model, tuple(image), prompt, chosen, max_new_tokens, repeats, dtype, device, attn, strict)
        outcome = run_request(request, draw=overlay is not None, say=say)
    if as_json:
        terminal.print_json(outcome.to_dict())
    else:
        printing.print_outcome(outcome)
    if overlay is not None and outcome.overlay is not None:
        terminal.write_whole(overlay, outcome.overlay.save)
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
    terminal.check_target(path, "--overlay")
