"""The command line. Every sub-command prints its result on stdout, as one JSON document with --json.

Only reads arguments and prints: what a method is, `catalogue` knows; how a model is run, `running` does, which is
imported when a model is run.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image
from rich.table import Table

from feathervlm import catalogue, terminal
from feathervlm.core.errors import PruningError
from feathervlm.methods import Method, available, get

if TYPE_CHECKING:
    from feathervlm.running import Outcome

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
    feathervlm methods
    feathervlm run --model llava-hf/llava-1.5-7b-hf --image cat.jpg
        --prompt "Where is the cat?" --method feather
    """


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
        _print_method(described[0])
    else:
        _print_methods(described)


def _print_methods(described: list[dict[str, Any]]) -> None:
    table = Table("method", "idea", "prunes at", "paper", show_edge=False, pad_edge=False)
    for method in described:
        stages = ", ".join(stage["at"] for stage in method["stages"])
        table.add_row(method["name"], method["summary"], stages, method["paper"])
    terminal.out.print(table)
    typer.echo("\nFractions are of the depth: 1/4 is layer 8 of 32. All about one: feathervlm methods NAME")


def _print_method(method: dict[str, Any]) -> None:
    lines = [f"{method['name']}  ({method['paper']})", "", method["doc"], "", "Parameters:"]
    lines += [f"    {p['name']}: {p['type']}, default {p['default']}" for p in method["parameters"]] or ["    none"]
    lines += ["", "Stages, on a model of 32 layers and an image of 24 x 24 tokens:"]
    for stage in method["stages"]:
        kept = f"{'' if stage['exact'] else 'about '}{stage['tokens_of_576']} of 576 tokens stay"
        renumbered = ", positions renumbered" if stage["positions"] == "renumber" else ""
        lines.append(f"    at {stage['at']} (layer {stage['layer_of_32']}): {kept}{renumbered}")
    lines += ["", "Needs:", *(f"    {need}" for need in method["needs"])]
    lines += ["", f"Needs text: {_yes(method['needs_text'])}"]
    lines += [f"Number of kept tokens known beforehand: {_yes(method['count_known'])}"]
    lines += ["", "Examples:", *(f"    --method {_quoted(spec)}" for spec in method["examples"])]
    typer.echo("\n".join(lines))


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _quoted(spec: str) -> str:
    return f'"{spec}"' if "(" in spec else spec


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
        _print_outcome(outcome)
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


def _print_outcome(outcome: "Outcome") -> None:
    unpruned, pruned = outcome.unpruned, outcome.pruned
    typer.echo(f"unpruned: {_printable(unpruned.answer)}")
    if pruned is not None:
        typer.echo(f"pruned:   {_printable(pruned.answer)}\n\n{outcome.report}")
    table = Table("", "unpruned", *(["pruned", "ratio"] if pruned else []), show_edge=False, pad_edge=False)
    for name, before, after in (
        ("first token", unpruned.first_token, pruned and pruned.first_token),
        ("whole answer", unpruned.total, pruned and pruned.total),
    ):
        table.add_row(name, f"{before:.3f} s", *([f"{after:.3f} s", f"{after / before:.0%}"] if after else []))
    table.add_row("new tokens", str(unpruned.new_tokens), *([str(pruned.new_tokens)] if pruned else []))
    typer.echo()
    terminal.out.print(table)
    if pruned is not None and not outcome.gain:
        typer.echo(
            f"\nThere was no gain: the first token took {pruned.first_token:.3f} s pruned and "
            f"{unpruned.first_token:.3f} s unpruned. Pruning pays where prefill is the work: many visual tokens, "
            "a large model, a large batch."
        )


def _printable(text: str) -> str:
    """The text without control characters, which a model could send to the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
