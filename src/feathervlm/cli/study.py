"""`feathervlm study`: reads its options, shows how far it is, prints the verdicts and where the report is."""

from pathlib import Path
from typing import Annotated

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson
from feathervlm.core.errors import PruningError
from feathervlm.utils import files

EMBEDDED = "embedded"


def study(
    model: Annotated[
        str, typer.Option(metavar="DIR|ID", help="`embedded`, a model directory, or an id on the hub.")
    ] = EMBEDDED,
    data: Annotated[
        str, typer.Option(metavar="FILE", help="`embedded`, or your own questions as JSON lines (docs/study-data.md).")
    ] = EMBEDDED,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything is written.")] = Path("study"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer questions, layers and budgets: a first look.")] = False,
    n: Annotated[
        int | None, typer.Option(min=2, help="Embedded questions per task; default 200, with --quick 24.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the embedded questions, the intervals, the pictures.")] = 1,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Side by side, one thread each; default: one per core, 1 on a GPU.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Questions at once; default 40 for the embedded model, else 1.")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Another study, e.g. of another training seed, to show beside; repeat it."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of an answer at most; default 32, the embedded model's 5.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, mps.")] = "auto",
    attn: Annotated[str, typer.Option(help="sdpa, eager or any other that transformers has.")] = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Rerun the paper's experiments: damage by task, where tokens go, why, criteria, FEATHER, pictures.

    About half an hour on two cores for the embedded model, two minutes with --quick. What is answered is kept: the
    same command goes on where it was stopped.

    Examples:

    \b
    feathervlm study --quick
    feathervlm study --out results/study
    feathervlm study --model llava-hf/llava-1.5-7b-hf --data mine.jsonl
    feathervlm study --model runs/seed-1 --out seed-1
    feathervlm study --beside seed-1 --beside seed-2
    """
    if data != EMBEDDED and n is not None:
        raise PruningError(f"--n {n} is for the embedded questions; of {data} every line is asked, so leave it out.")
    files.make_directory(out, "--out")
    with console.working("importing transformers"):
        from feathervlm.study import Embedded, Jsonl, ModelSpec, Request, run

        embedded = Embedded(n=n or (24 if quick else 200), seed=seed)
        task = Jsonl(Path(data)) if data != EMBEDDED else embedded
    request = Request(
        spec=ModelSpec(model, device, dtype, attn, max_new_tokens, batch),
        task=task,
        out=out,
        quick=quick,
        processes=processes,
        seed=seed,
        beside=tuple(beside or ()),
    )
    try:
        with console.counting("answers") as told:
            done = run(request, told)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on where it was (answers are in {out / 'answers'})", err=True)
        raise typer.Exit(130) from None
    if as_json:
        console.print_json(
            {"about": done.about, "findings": done.findings, "files": [str(path) for path in done.files]}
        )
    else:
        tables.print_study(done)
