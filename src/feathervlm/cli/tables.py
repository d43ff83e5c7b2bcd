"""How results look at the terminal: tables and plain lines on stdout. Decides nothing and measures nothing."""

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from feathervlm.cli import console

if TYPE_CHECKING:
    from feathervlm.evaluation.demo import DemoResult
    from feathervlm.evaluation.embedded_result import BenchmarkResult
    from feathervlm.inference.compare import RunResult
    from feathervlm.study.run_study import Study


def print_show(shown: "DemoResult", files: list[Path]) -> None:
    """The demo: replies, benchmark, where to look."""
    for question in dict.fromkeys(reply.question for reply in shown.answers):
        right = f"   (right: {question.answer})" if question.answer and not question.box else ""
        typer.echo(f"{question.text}{right}")
        for reply in shown.answers:
            if reply.question == question:
                typer.echo(f"    {reply.method}: {_printable(reply.answer.text)}   {_verdict(reply.grade)}".rstrip())
    typer.echo()
    table = Table("cost", "tokens per layer", "prefill FLOPs", "first token", show_edge=False, pad_edge=False)
    for name in shown.pictures:
        first, *_ = replies = [reply for reply in shown.answers if reply.method == name]
        seconds = median(reply.answer.first_token_seconds or 0 for reply in replies)
        facts = first.to_dict()
        tokens = "all" if facts["average_tokens"] is None else f"{facts['average_tokens']:.0f}"
        table.add_row(name, tokens, f"{facts['flops_ratio']:.0%}", f"{seconds * 1e3:.1f} ms")
    console.out.print(table)
    if shown.benchmarks:
        typer.echo()
        _print_benchmarks(shown.benchmarks)
    if not shown.request.model:
        typer.echo("\nA model this small spends little time on visual tokens; `run` shows what a real one saves.")
    typer.echo("\nLook at the pictures: bright patches are what the model still sees after each stage.")
    if any(reply.question.box for reply in shown.answers):
        typer.echo("The true box is green, the predicted one red. Is the object that was asked about still there?")
    for path in files:
        typer.echo(f"    {path}")


def _print_benchmarks(results: "list[BenchmarkResult]") -> None:
    n = results[0].n
    table = Table("accuracy", *(result.method for result in results), show_edge=False, pad_edge=False)
    for name, task in results[0].tasks.items():
        kind = "localization: " if task.iou is not None else ""
        table.add_row(kind + name, *(f"{result.tasks[name].accuracy.value:.2f}" for result in results))
    for title, mean in (("mean change, localization", "localization"), ("mean change, others", "others")):
        cells = [getattr(result, mean) for result in results]
        table.add_row(
            title, *(f"{cell.value:+.2f} [{cell.low:+.2f}, {cell.high:+.2f}]" if cell else "" for cell in cells)
        )
    console.out.print(table)
    more = "" if n >= 200 else " More: --n 200."
    typer.echo(f"{n} questions per task, the same for every method; 95 % intervals.{more}")


def _verdict(grade: tuple[bool, float | None] | None) -> str:
    if grade is None:
        return ""
    correct, overlap = grade
    return ("right" if correct else "wrong") + ("" if overlap is None else f", IoU {overlap:.2f}")


def print_methods(described: list[dict[str, Any]]) -> None:
    """One row for each method."""
    table = Table("method", "idea", "prunes at", "paper", show_edge=False, pad_edge=False)
    for method in described:
        stages = ", ".join(stage["at"] for stage in method["stages"])
        table.add_row(method["name"], method["summary"], stages, method["paper"])
    console.out.print(table)
    typer.echo("\nFractions are of the depth: 1/4 is layer 8 of 32. All about one: feathervlm methods NAME")


def print_method(method: dict[str, Any]) -> None:
    """All about one method, as `catalogue.describe` gives it."""
    lines = [f"{method['name']}  ({method['paper']})", "", method["doc"], "", "Parameters:"]
    lines += [f"    {p['name']}: {p['type']}, default {p['default']}" for p in method["parameters"]] or ["    none"]
    lines += ["", "Stages, on a model of 32 layers and an image of 24 x 24 tokens:"]
    for stage in method["stages"]:
        kept = f"{'' if stage['exact'] else 'about '}{stage['tokens_of_576']} of 576 tokens stay"
        merged = ", the others merged into them" if stage["merged"] else ""
        moved = "" if stage["positions"] == "preserve" else f", positions: {stage['positions']}"
        cut = "" if stage["cache"] == "later" else ", and in the caches of the layers before"
        lines.append(f"    at {stage['at']} (layer {stage['layer_of_32']}): {kept}{merged}{moved}{cut}")
    if method["encoder"]:
        counts = method["encoder"]
        lines += ["", f"Vision encoder, of {len(counts)} layers and as many patches:"]
        lines += [
            f"    {counts[0]} enter the first layer, {counts[-1]} the last, {sum(counts) / len(counts):.1f} on average"
        ]
    lines += ["", "Needs:", *(f"    {need}" for need in method["needs"])]
    lines += ["", f"Needs text: {_yes(method['needs_text'])}"]
    lines += [f"Number of kept tokens known beforehand: {_yes(method['count_known'])}"]
    lines += ["", "Examples:", *(f"    --method {_quoted(spec)}" for spec in method["examples"])]
    typer.echo("\n".join(lines))


def print_models(described: list[dict[str, Any]], refused: dict[str, str]) -> None:
    """One row for each family, and what is refused."""
    table = Table("family", "model types", "input", "grids of a picture", show_edge=False, pad_edge=False)
    table.columns[1].no_wrap = True  # a name in two lines cannot be copied
    for family in described:
        table.add_row(family["title"], "\n".join(family["model_types"]), ", ".join(family["input"]), family["geometry"])
    console.out.print(table)
    typer.echo("\nRefused:")
    for reason, kinds in _by_reason(refused).items():
        typer.echo(f"    {', '.join(kinds)}: {reason}")
    typer.echo("\nAll about one: feathervlm models NAME")


def _by_reason(refused: dict[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for kind, reason in refused.items():
        reasons.setdefault(reason, []).append(kind)
    return reasons


def print_model(family: dict[str, Any]) -> None:
    """All about one family, as `models.describe` gives it."""
    rows = {
        "model types": ", ".join(family["model_types"]) or "none of its own",
        "input": ", ".join(family["input"]),
        "grids": family["geometry"],
        "decoder": family["decoder"],
        "caches": ", ".join(family["caches"]),
        "attention": f"{', '.join(family['attention'])} (tested); flash attention is untested",
        "boxes": family["box_format"] or "no convention of its own",
        "limits": family["limits"] or "none known",
    }
    typer.echo(f"{family['title']}\n\n{family['about']}\n")
    for name, value in rows.items():
        typer.echo(f"    {name + ':':<13}{value}")


def print_study(done: "Study") -> None:
    """The verdicts of a study, and where its report is."""
    from feathervlm.study.report import estimate

    table = Table("finding", "here", "verdict", show_edge=False, pad_edge=False)
    for finding in done.findings:
        measured = [f"{name}: {estimate(value)}" for name, value in finding["measured"].items()]
        table.add_row(finding["claim"], "\n".join(measured), finding["verdict"])
    console.out.print(table)
    typer.echo("\nLook at the pictures and the rules behind the verdicts:")
    for path in done.files:
        if path.suffix in (".html", ".md"):
            typer.echo(f"    {path}")


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _quoted(spec: str) -> str:
    return f'"{spec}"' if "(" in spec else spec


def print_outcome(outcome: "RunResult") -> None:
    """What `run` found."""
    unpruned, pruned = outcome.unpruned, outcome.pruned
    typer.echo(f"unpruned: {_printable(unpruned.text)}")
    if pruned is not None:
        typer.echo(f"pruned:   {_printable(pruned.text)}\n\n{outcome.report}")
    table = Table("", "unpruned", *(["pruned", "ratio"] if pruned else []), show_edge=False, pad_edge=False)
    for name, key in (("first token", "first_token_seconds"), ("whole answer", "seconds")):
        before, after = (one and getattr(one, key) for one in (unpruned, pruned))
        table.add_row(name, f"{before:.3f} s", *([f"{after:.3f} s", f"{after / before:.0%}"] if after else []))
    table.add_row("new tokens", str(unpruned.tokens), *([str(pruned.tokens)] if pruned else []))
    typer.echo()
    console.out.print(table)
    if pruned is not None and not outcome.gain:
        typer.echo(
            f"\nThere was no gain: the first token took {pruned.first_token_seconds:.3f} s pruned and "
            f"{unpruned.first_token_seconds:.3f} s unpruned. Pruning pays where prefill is the work: many visual "
            "tokens, a large model, a large batch."
        )


def _printable(text: str) -> str:
    """The text without control characters, which a model could send to the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
