"""`feathervlm demo`: pictures, answers and a benchmark of methods on the embedded model."""

import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson, Background, Force, Load, Methods, Model, files_in, read_methods
from feathervlm.embedded.assets import SHIPPED
from feathervlm.utils import progress
from feathervlm.utils.text import printable

if TYPE_CHECKING:
    from feathervlm.evaluation.demo import DemoResult
    from feathervlm.evaluation.embedded_result import BenchmarkResult


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where pictures and numbers are written.")] = Path("demo"),
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own picture; needs --prompt.")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Your own question.")] = None,
    model: Model = SHIPPED,
    method: Methods = None,
    load: Load = None,
    seed: Annotated[int, typer.Option(min=0, help="Which scene, which benchmark questions.")] = 0,
    n: Annotated[int, typer.Option(min=0, help="Benchmark questions per task; 0: no benchmark.")] = 40,
    background: Background = "white",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Watch FastV and FEATHER prune a small trained model.

    Shows answers of the model unpruned and with each method, draws what was kept, and runs a small benchmark. The model
    comes with the package, so nothing is downloaded; it takes about a minute on two cores. With another --model there
    is no benchmark.

    Examples:

    \b
    feathervlm demo
    feathervlm demo --seed 3 --method feather --method fastv:layer=3,keep=0.1
    feathervlm demo --image scene.png --prompt "where is the red circle ?"
    feathervlm demo --model llava-hf/llava-1.5-7b-hf --image cat.jpg --prompt "Where is the cat?"
    """
    specs = read_methods(method)
    with progress.spinner("importing transformers") as say:
        from feathervlm.evaluation.demo import DemoRequest, show
        from feathervlm.inference.model_spec import UNPRUNED
        from feathervlm.utils import files, outputs, picture_formats

        pruned = tuple(spec for spec in specs if spec != UNPRUNED)
        request = DemoRequest(
            image, prompt, None if model == SHIPPED else model, pruned, seed, n, background=background
        )
        views = {spec: _file_name(number, spec) for number, spec in enumerate((UNPRUNED, *request.chosen))}
        names = ("overview.png", "scene.png", *views.values(), "results.json")
        inputs = [*files_in(load, method), *([image] if image is not None else [])]
        outputs.check_folder(out, "--out", names, inputs=inputs, force=force)
        shown = show(request, say=say)
    files.make_directory(out)
    for path in out.glob("[0-9]-*.png"):  # a previous run may have shown other methods
        if path.is_file() and outputs.is_ours(path) and not any(outputs.same(path, other) for other in inputs):
            path.unlink()
    written = {out / "overview.png": shown.overview, out / "scene.png": shown.picture}
    written |= {out / views[spec]: view for spec, view in shown.pictures.items()}
    for path, picture in written.items():
        files.write_whole(path, lambda draft, picture=picture: picture_formats.write(picture, draft))  # type: ignore[misc]  # lambda
    files.write_json(out / "results.json", shown.to_dict())
    if as_json:
        console.print_json(shown.to_dict() | {"files": [str(path) for path in (*written, out / "results.json")]})
    else:
        _print(shown, [*written, out / "results.json"])


def _file_name(number: int, spec: str) -> str:
    """Return the name of a method's picture; a spec may be the path of a file."""
    return f"{number}-{re.sub(r'[^a-z0-9.+=-]+', '_', Path(spec.split(':')[0]).name.lower())[:60]}.png"


def _print(shown: "DemoResult", files: list[Path]) -> None:
    for question in dict.fromkeys(one.question for one in shown.answers):
        right = f"   (right: {question.answer})" if question.answer and not question.box else ""
        typer.echo(f"{question.text}{right}")
        for one in shown.answers:
            if one.question == question:
                text = tables.printable(one.answer.text)
                typer.echo(f"    {one.method}: {text}   {_verdict(one.grade)}".rstrip())
    typer.echo()
    table = tables.table("cost", "tokens per layer", "prefill FLOPs", "first token")
    for name in shown.pictures:
        first, *_ = answers = [one for one in shown.answers if one.method == name]
        seconds = median(one.answer.first_token_seconds or 0 for one in answers)
        facts = first.to_dict()
        tokens = "all" if facts["average_tokens"] is None else f"{facts['average_tokens']:.0f}"
        table.add_row(name, tokens, f"{facts['flops_ratio']:.0%}", f"{seconds * 1e3:.1f} ms")
    tables.show(table)
    if shown.benchmarks:
        typer.echo()
        _print_benchmarks(shown.benchmarks)
    if not shown.request.model:
        typer.echo("\nA model this small spends little time on visual tokens; `run` shows what a real one saves.")
    typer.echo("\nLook at the pictures: bright patches are what the model still sees after each stage.")
    if any(one.question.box for one in shown.answers):
        typer.echo("The true box is green, the predicted one red. Is the object that was asked about still there?")
    for path in files:
        typer.echo(f"    {printable(path)}")


def _print_benchmarks(results: "list[BenchmarkResult]") -> None:
    n = results[0].n
    table = tables.table("accuracy", *(result.method for result in results))
    for name, task in results[0].tasks.items():
        kind = "localization: " if task.iou is not None else ""
        table.add_row(kind + name, *(f"{result.tasks[name].accuracy.value:.2f}" for result in results))
    for title, mean in (("mean change, localization", "localization"), ("mean change, others", "others")):
        cells = [getattr(result, mean) for result in results]
        table.add_row(
            title, *(f"{cell.value:+.2f} [{cell.low:+.2f}, {cell.high:+.2f}]" if cell else "" for cell in cells)
        )
    tables.show(table)
    more = "" if n >= 200 else " More: --n 200."
    typer.echo(f"{n} questions per task, the same for every method; 95 % intervals.{more}")


def _verdict(grade: tuple[bool, float | None] | None) -> str:
    if grade is None:
        return ""
    correct, overlap = grade
    return ("right" if correct else "wrong") + ("" if overlap is None else f", IoU {overlap:.2f}")
