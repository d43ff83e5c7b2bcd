"""`feathervlm demo`: reads its options, writes its files."""

from pathlib import Path
from typing import Annotated

import typer

from feathervlm.cli import console, tables
from feathervlm.cli.options import AsJson
from feathervlm.methods import get
from feathervlm.utils import files


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
    files.make_directory(out, "--out")
    with console.working("importing transformers") as say:
        from feathervlm.evaluation.demo import DemoRequest, show

        shown = show(DemoRequest(image, prompt, model, specs, seed, n), say=say)
    for path in out.glob("[0-9]-*.png"):
        path.unlink()  # of an earlier run with other methods
    written = {out / "overview.png": shown.overview, out / "scene.png": shown.picture}
    written |= {
        out / f"{number}-{spec.split(':')[0]}.png": view for number, (spec, view) in enumerate(shown.pictures.items())
    }
    for path, picture in written.items():
        files.write_whole(path, picture.save)
    files.write_json(out / "results.json", shown.to_dict())
    if as_json:
        console.print_json(shown.to_dict() | {"files": [str(path) for path in (*written, out / "results.json")]})
    else:
        tables.print_show(shown, [*written, out / "results.json"])
