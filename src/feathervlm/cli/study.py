"""`feathervlm study`: the experiments of the paper, rerun on a model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson, Attention, Background, Batch, Device, Dtype, Force, Model, files_in
from feathervlm.embedded.assets import SHIPPED
from feathervlm.utils import progress
from feathervlm.utils.text import printable

if TYPE_CHECKING:
    from feathervlm.study.run_study import Study


def study(
    model: Model = SHIPPED,
    data: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="`embedded`, your own questions as JSON lines (docs/study-data.md), or tasks of `feathervlm eval`.",
        ),
    ] = SHIPPED,
    data_dir: Annotated[
        Path,
        typer.Option(metavar="DIR", envvar="FEATHERVLM_DATA", help="Where the data sets are (docs/evaluation.md)."),
    ] = Path("data"),
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything is written.")] = Path("study"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer questions, layers and budgets: a first look.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report of a finished study anew; ask nothing.")
    ] = False,
    n: Annotated[
        int | None, typer.Option(min=2, help="Questions per embedded or benchmark task; default 200, with --quick 24.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of embedded questions, intervals and shown pictures.")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Side by side, one thread each; default: one per core, 1 on a GPU.")
    ] = None,
    batch: Batch = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Another study, e.g. of another training seed, to show beside; repeat it."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of an answer at most; default 32, the embedded model's 5.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = "sdpa",
    background: Background = "white",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Rerun the experiments of the paper on a model.

    Measures the damage by task, where the kept tokens lie and why, the criteria and FEATHER, and draws pictures.
    About half an hour on two cores for the embedded model, two minutes with --quick. Answers are kept: the same command
    continues where it was stopped, and a finished study is reported again without its model.

    Examples:

    \b
    feathervlm study --quick
    feathervlm study --out results/study
    feathervlm study --model llava-hf/llava-1.5-7b-hf --data mine.jsonl
    feathervlm study --model llava-hf/llava-1.5-7b-hf --data refcoco,textvqa
    feathervlm study --model runs/seed-1 --out seed-1
    feathervlm study --beside seed-1 --beside seed-2
    """
    console.require("report", "matplotlib", "jinja2")
    with progress.spinner("importing transformers"):
        from feathervlm.core.errors import PruningError
        from feathervlm.study import ModelSpec, StudyQuestions, StudyRequest, run
        from feathervlm.study.experiments import EXPERIMENTS
        from feathervlm.utils import outputs
    names = [data] if os.path.isfile(data) else [name.strip() for name in data.split(",") if name.strip()]
    if n is not None and names and all(name.endswith(".jsonl") for name in names):
        raise PruningError(f"--n {n} is not for your own questions; of {data} every line is asked, so leave it out.")
    findings = [folder / "findings.json" for folder in beside or ()]
    written = [f"{one.name}.json" for one in EXPERIMENTS]
    written += ["findings.json", "probe.json", "report.html", "report.md", "runs.json"]
    written += [f"figures/{path.name}" for one in EXPERIMENTS for path in out.glob(f"figures/{one.name}-*")]
    outputs.check_folder(out, "--out", written, ["answers", "figures"], inputs=files_in(names, findings), force=force)
    request = StudyRequest(
        spec=ModelSpec(model, device, dtype, attention, max_new_tokens, batch),
        questions=StudyQuestions.of(names, data_dir, n or (24 if quick else 200), seed, background),
        out=out,
        quick=quick,
        processes=processes,
        seed=seed,
        beside=tuple(beside or ()),
        report_only=report_only,
    )
    try:
        with progress.bar("answers") as step:
            done = run(request, step)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command continues where it was (answers are in {out / 'answers'})", err=True)
        raise typer.Exit(130) from None
    if as_json:
        console.print_json(
            {"about": done.about, "findings": done.findings, "files": [str(path) for path in done.files]}
        )
    else:
        _print(done)


def _print(done: "Study") -> None:
    from feathervlm.study.report import estimate

    table = tables.table("finding", "here", "verdict")
    for finding in done.findings:
        measured = [f"{name}: {estimate(value)}" for name, value in finding["measured"].items()]
        table.add_row(finding["claim"], "\n".join(measured), finding["verdict"])
    tables.show(table)
    typer.echo("\nLook at the pictures and the rules of the verdicts:")
    for path in done.files:
        if path.suffix in (".html", ".md"):
            typer.echo(f"    {printable(path)}")
