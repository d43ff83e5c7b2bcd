"""`feathervlm bench`: measures time and memory with and without pruning, prints tables and what they mean."""

import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import (
    AsJson,
    Attention,
    Device,
    Force,
    Load,
    Methods,
    default_methods,
    files_in,
    read_methods,
)
from feathervlm.utils import progress

if TYPE_CHECKING:
    from rich.table import Table

CONFIGS = "tiny, llava-170m, llava-1.5-7b, llava-next-7b, qwen2.5-vl-7b"
QUICK = {"rounds": 2, "new_tokens": 4}


def bench(
    model: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="`embedded`, a model directory, or an id on the hub.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Random weights of real dimensions: {CONFIGS}.")
    ] = None,
    method: Methods = None,
    load: Load = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N,N", help="Visual tokens of a sample; default: the model's usual picture.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Batch sizes.")] = "1",
    depth: Annotated[str | None, typer.Option(metavar="N,N", help="Decoder layers of a --config.")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=2, help="Length of an answer; default 16.")] = None,
    text_tokens: Annotated[int, typer.Option(min=8, help="Text in a prompt to a --config.")] = 59,
    rounds: Annotated[int | None, typer.Option(min=1, help="Runs of each kind that count; default 3.")] = None,
    ragged: Annotated[bool, typer.Option("--ragged", help="Samples of different lengths, padded on the left.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="2 rounds and 4 new tokens: a first look.")] = False,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="auto (a --model as stored; a --config in float32 on a CPU, else bfloat16), float32, ..."),
    ] = "auto",
    attention: Attention = "sdpa",
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch on a CPU; with one, processor time is measured.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw measured against ideal.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure what pruning saves in time and memory.

    The unpruned model and the methods take turns in one process. The unpruned model runs at both ends of every round,
    which measures the noise. Results are medians and quartiles after a warm-up. Without options, a model of 170M
    parameters is measured in under two minutes on one core.

    Examples:

    \b
    feathervlm bench
    feathervlm bench --quick --methods fastv:layer=3,keep=0.25,random
    feathervlm bench --config tiny --tokens 144,576,2304 --plot scale.png
    feathervlm bench --config llava-next-7b --batch 1,8 --device cuda
    feathervlm bench --model llava-hf/llava-1.5-7b-hf --methods feather
        --tokens 576,2880 --out mine.json
    """
    if plot is not None:
        console.require("report", "matplotlib")
    specs = read_methods(method, default_methods(model))
    with progress.spinner("importing transformers"):
        from feathervlm.bench.run_bench import BenchRequest, run
        from feathervlm.core.errors import PruningError
        from feathervlm.inference.model_spec import UNPRUNED
        from feathervlm.utils import files, outputs
    if model is not None and config is not None:
        raise PruningError(f"--model {model} and --config {config} are two models; give one of them.")
    if plot is not None:
        from feathervlm.utils.plotting import check_suffix

        check_suffix(plot, "--plot")
    outputs.check_files({"--out": out, "--plot": plot}, inputs=files_in(load, method), force=force)
    settings: dict[str, Any] = {
        "model": model, "methods": tuple(spec for spec in specs if spec != UNPRUNED), "text_tokens": text_tokens,
        "ragged": ragged, "device": device, "dtype": dtype, "attention": attention, "threads": threads,
        "tokens": numbers(tokens, "--tokens"), "batches": numbers(batch, "--batch"),
        "layers": numbers(depth, "--depth"), **({"config": config} if config is not None else {}),
        **(QUICK if quick else {}),
        **{name: value for name, value in (("rounds", rounds), ("new_tokens", new_tokens)) if value is not None},
    }  # fmt: skip
    with progress.spinner("starting") as say:
        result = run(BenchRequest(**settings), say)
        if plot is not None:
            from feathervlm.bench.plot import draw

            say("drawing")
            files.write_whole(plot, lambda draft: draw(result["rows"], draft))
    if out is not None:
        files.write_json(out, result)
    if as_json:
        console.print_json(result)
    else:
        _print(result)
    for path in (out, plot):
        if path is not None:
            typer.echo(console.one_line(f"wrote {path}"), err=True)


def numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Read positive integers joined by commas; None gives an empty tuple.

    Raises:
        PruningError: If a part is anything else.
    """
    from feathervlm.core.errors import PruningError

    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not re.fullmatch(r"0*[1-9]\d{0,6}", part)), None)
    if wrong is not None:
        raise PruningError(f"{option} {text}: {wrong!r} is not a positive integer; write the numbers like 144,576.")
    return tuple(dict.fromkeys(map(int, parts)))


def _print(result: dict[str, Any]) -> None:
    from feathervlm.bench.verdict import BreakEven

    facts, settings = result["model"], result["settings"]
    typer.echo(
        f"{settings['model'] or settings['config']}: {facts['parameters'] / 1e6:.0f}M parameters, {facts['dtype']}, "
        f"{settings['device']}, {settings['clock']}; {settings['rounds']} rounds, median (quartiles)"
    )
    for _, rows in groupby(result["rows"], key=lambda row: (row["tokens"], row["batch"], row["layers"])):
        case = list(rows)
        where = f"batch {case[0]['batch']}, {case[0]['layers']} layers"
        typer.echo(f"\n{case[0]['tokens']} visual and {case[0]['text']} text tokens, {where}")
        tables.show(_table(case))
    typer.echo()
    for one in result["verdicts"]:
        typer.echo(
            f"{one['method']}, {one['tokens']} tokens, batch {one['batch']}, {one['layers']} layers: {one['text']}"
        )
    for one in result["break_even"]:
        what = "prefill no slower" if one["part"] == "prefill" else f"first token in {one['level']:.0%} of the time"
        typer.echo(f"{one['method']}, batch {one['batch']}, {one['layers']} layers: {what} {BreakEven(**one)} tokens")
    for one in result["refused"]:
        typer.echo(f"not measured: {one['reason']}", err=True)


def _table(rows: list[dict[str, Any]]) -> "Table":
    """Return the table of one case: a column for each method and, with the ratios of its second run, for no pruning."""
    first = rows[0]
    table = tables.table("", *(row["method"] for row in rows))
    for part, name in (
        ("encoder", "vision encoder"),
        ("selection", "selection"),
        ("prefill", "prefill"),
        ("first_token", "time to first token"),
        ("decode", "each further token"),
        ("answer", "whole answer"),
    ):
        if part == "selection":
            table.add_row(name, "", *(_time(row["seconds"][part]) for row in rows[1:]))
            table.add_row("  of a prefill", "", *(f"{row['selection_share']['median']:.2%}" for row in rows[1:]))
            continue
        table.add_row(name, *(_time(row["seconds"][part]) for row in rows))
        table.add_row("  of unpruned (noise)", *(_ratio(row["ratio"][part]) for row in rows))
        if part in first["ideal"]:
            table.add_row("  ideal by FLOPs", *(f"{row['ideal'][part]:.3f}" for row in rows))
        if part == "prefill":
            table.add_row("  gap to it", "", *(f"{row['gap']:+.3f}" for row in rows[1:]))
    table.add_row("KV cache", *(f"{_size(row['kv_bytes'])}, {row['kv_bytes_ratio']:.3f}" for row in rows))
    peaks = (
        "not measured" if row["peak_bytes"] is None else f"{_size(row['peak_bytes'])}, {row['peak_ratio'] or 1:.3f}"
        for row in rows
    )
    table.add_row("peak beside weights", *peaks)
    return table


def _time(seconds: dict[str, float]) -> str:
    return f"{1e3 * seconds['median']:.1f} ms"


def _ratio(quartiles: dict[str, float]) -> str:
    return f"{quartiles['median']:.2f} ({quartiles['low']:.2f}-{quartiles['high']:.2f})"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
