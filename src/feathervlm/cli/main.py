"""The command line: which commands there are. Each prints its result on stdout, as one JSON document with --json."""

import sys
from typing import Annotated

import typer

from feathervlm.cli import console
from feathervlm.cli.app import open_app
from feathervlm.cli.bench import bench
from feathervlm.cli.convert_prismatic import convert_prismatic
from feathervlm.cli.demo import demo
from feathervlm.cli.diagnose import diagnose
from feathervlm.cli.eval import evaluate
from feathervlm.cli.methods import methods
from feathervlm.cli.models import models
from feathervlm.cli.run import run
from feathervlm.cli.serve import serve
from feathervlm.cli.study import study
from feathervlm.utils.provenance import own_version

app = typer.Typer(
    cls=console.Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help wraps paragraphs, and is quicker
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line, as the entry point of the package."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an answer may hold characters that a terminal cannot show
    app(prog_name="feathervlm")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"feathervlm {own_version()}")
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
    feathervlm study --quick
    feathervlm diagnose --images photos --method fastv
    feathervlm bench
    feathervlm eval --limit 20
    feathervlm app
    feathervlm serve --method feather:layers=4+9
    feathervlm convert-prismatic RUN OUT --tokenizer DIR --vision DIR
    """


for command in (demo, methods, models, run, study, diagnose, bench, convert_prismatic):
    app.command()(command)
app.command("eval")(evaluate)
app.command("app")(open_app)
app.command("serve", context_settings={"allow_extra_args": True})(serve)  # what follows `--` goes to vLLM
