"""`feathervlm eval`: benchmarks under several methods."""

import os
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import (
    AsJson,
    Attention,
    Background,
    Batch,
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
    from feathervlm.evaluation.results import Row
    from feathervlm.evaluation.statistics import Estimate


def evaluate(
    method: Methods = None,
    load: Load = None,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="embedded, feather_suite (all twelve), names or files (docs/study-data.md), with commas.",
        ),
    ] = "embedded",
    model: Model = SHIPPED,
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", envvar="FEATHERVLM_DATA", help="Where the data sets are (docs/evaluation.md)."),
    ] = Path("data"),
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything is written.")] = Path("eval"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions per split at most, the same for every method.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="symmetric, or paper: prompts of boxes and scores as in the paper's harness.")
    ] = "symmetric",
    compare_paper: Annotated[
        bool, typer.Option("--compare-paper", help="Print the paper's numbers beside those of the same methods.")
    ] = False,
    batch: Batch = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = "sdpa",
    background: Background = "white",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run benchmarks under several methods.

    All methods answer the same questions, and intervals are paired. The unpruned model always answers, too; without
    --method FastV and FEATHER are compared with it. Answers are kept: the same command continues where it was stopped.
    Under `torchrun` or `accelerate launch` processes share the questions, and the last to finish prints the table.

    Examples:

    \b
    feathervlm eval --limit 20
    feathervlm eval --model llava-hf/llava-1.5-7b-hf --data data
        --tasks vsr,refcoco --methods fastv,feather:keep=0.4
    feathervlm eval --model prism-siglip --tasks feather_suite
        --methods fastv,feather --protocol paper --compare-paper
    """
    specs = read_methods(method, ("unpruned", *default_methods(model)))
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    with progress.spinner("importing transformers"):
        from feathervlm.core.errors import PruningError
        from feathervlm.evaluation.metrics import PROTOCOLS
        from feathervlm.evaluation.paper import compare
        from feathervlm.evaluation.results import rows
        from feathervlm.evaluation.run import EvalRequest, run
        from feathervlm.evaluation.shard import Shard
        from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
        from feathervlm.methods import get
        from feathervlm.utils import files, outputs
    outputs.check_folder(
        out, "--out", ["results.json"], ["answers", "samples"], inputs=files_in(names, load, method), force=force
    )
    if protocol not in PROTOCOLS:
        raise PruningError(f"There is no protocol {protocol!r}; choose {' or '.join(PROTOCOLS)}.")
    chosen = tuple(spec if spec == UNPRUNED else str(get(spec)) for spec in specs)
    shard = Shard.of(os.environ)
    model_spec = ModelSpec(model, device, dtype, attention, None, batch)
    request = EvalRequest(model_spec, chosen, names, data, out, protocol, limit, shard, seed, background)  # type: ignore[arg-type]  # one of PROTOCOLS
    try:
        with progress.bar("questions", shard.rank == 0) as step:
            done = run(request, step)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command continues where it was (answers are in {out / 'answers'})", err=True)
        raise typer.Exit(130) from None
    if done.missing:
        typer.echo(f"process {shard.rank} is done; {done.missing} answers of others are missing", err=True)
        return
    found = rows(done.samples, seed, done.tasks)
    document: dict[str, Any] = {"about": done.about, "rows": [row.to_dict() for row in found]}
    if compare_paper:
        document["paper"] = compare(found, done.about)
    files.write_json(out / "results.json", document)
    if as_json:
        console.print_json(document)
        return
    _print(found)
    _print_splits(found)
    if compare_paper:
        _print_comparison(document["paper"])
    typer.echo(f"\nEvery answer: {printable(out / 'samples')}")


def _print(rows: "list[Row]") -> None:
    columns = ("task", "method", "score", "change", "kept", "no box", "tokens", "FLOPs")
    table = tables.table(*columns)
    before = ""
    for row in rows:
        title = f"{row.title} ({row.n})" if row.n else row.title
        table.add_row("" if row.task == before else title, *_cells(row))
        before = row.task
    tables.show(table, whole=True)
    typer.echo(
        "\nscore: percent; change: points to the unpruned model on the same questions, with a 95 % interval; kept: of "
        "the unpruned score; no box: answers that name no valid box, counted as wrong; tokens: visual, per layer, on "
        "average; FLOPs: of the prefill. Intervals of all numbers: results.json"
    )


def _print_splits(rows: "list[Row]") -> None:
    table = tables.table("score by split", *dict.fromkeys(row.method for row in rows))
    for task in dict.fromkeys(row.task for row in rows if row.splits):
        mine = [row for row in rows if row.task == task]
        for split in mine[0].splits:
            table.add_row(f"{mine[0].title}, {split}", *(f"{100 * row.splits[split].value:.1f}" for row in mine))
    if table.row_count:
        typer.echo()
        tables.show(table, whole=True)


def _cells(row: "Row") -> list[str]:
    change = "" if row.change is None else "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**_percent(row.change))
    return [
        row.method,
        f"{100 * row.score.value:.1f}",
        change,
        "" if row.retention is None or not isfinite(row.retention.value) else f"{row.retention.value:.1%}",
        "" if row.invalid is None else f"{row.invalid:.1%}",
        "all" if row.tokens is None else f"{row.tokens:.1f}",
        "100%" if row.flops is None else f"{row.flops:.0%}",
    ]


def _percent(found: "Estimate") -> dict[str, float]:
    interval = found.interval
    return {name: 100 * getattr(interval, name) for name in ("value", "low", "high")}


def _print_comparison(compared: dict[str, Any]) -> None:
    typer.echo(f"\nBeside the numbers of arXiv 2412.13180 ({compared['model']}):\n")
    table = tables.table("task", "method", "in the paper", "paper", "here", "off by", "within")
    for row in compared["rows"]:
        where = f"{row['label']} ({row['source']})"
        here = f"{row['here']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        within = "yes" if row["within"] else "no"
        off = f"{row['difference']:+.1f}"
        table.add_row(row["task"], row["method"], where, f"{row['paper']:.1f}", here, off, within)
    tables.show(table, whole=True)
    if not compared["rows"]:
        typer.echo("No task and method of this run is in the paper.")
    typer.echo(f"\nwithin: off by {compared['tolerance']} points at most")
    if compared["differs"]:
        typer.echo(f"This is not the paper's configuration: {'; '.join(compared['differs'])}.")
