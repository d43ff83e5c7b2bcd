"""Every method on the embedded model at the same average number of tokens: python scripts/compare_methods.py.

At 33, 22 and 11 % of the visual tokens, averaged over layers, next to random tokens, a grid and pooling. A method that
cannot get that low at its usual layers is tried at earlier ones, as its row says; one that cannot at all is left out.
Answers are kept beside the result, so that a run which was stopped goes on where it stood.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from feathervlm import methods as m
from feathervlm.core.errors import PruningError
from feathervlm.core.schedule import Layer
from feathervlm.evaluation import runner
from feathervlm.evaluation.store import AnswerStore
from feathervlm.inference import loading
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.study.aggregates import StudyResults
from feathervlm.study.model_probe import probe_model
from feathervlm.study.plan import Plan, rounded
from feathervlm.study.questions import StudyQuestions
from feathervlm.utils import files
from feathervlm.utils.provenance import provenance

SHARES = (0.33, 0.22, 0.11)
"""Average tokens over all visual tokens."""
EARLIER = (1.0, 0.5, 0.25)
"""What layers are multiplied with, until the budget can be met."""


def rows(plan: Plan) -> dict[str, m.Method]:
    """The methods by the name of their row, at their usual layers."""
    early, quarter, half, late = (plan.layer(share) for share in (3 / 32, 1 / 4, 1 / 2, 9 / 16))
    return {
        "random": m.RandomKeep(layer=0),
        "KNN density": m.KNN(layer=0, count=64),
        "FastV": m.FastV(layer=early),
        "FastV, RoPE-free": m.FastV(layer=early, rope=False),
        "RoPE-free + grid": m.Ensemble(layer=early, stride=4),
        "PyramidDrop": m.PyramidDrop(layers=(quarter, half, plan.layer(3 / 4))),
        "PyramidDrop, as FEATHER's paper runs it": m.PyramidDrop(
            layers=(quarter, half, plan.layer(3 / 4)), form="baseline"
        ),
        "FEATHER": m.Feather(layers=(quarter, half)),
        "FEATHER, later second stage": m.Feather(layers=(quarter, late)),
        "FasterVLM": m.FasterVLM(),
        "VisionZip": m.VisionZip(),
        "VScan": m.VScan(),
        "DivPrune": m.DivPrune(),
        "GreedyPrune": m.GreedyPrune(),
        "VisPruner": m.VisPruner(),
        "HoloV": m.HoloV(),
        "HiPrune": m.HiPrune(),
        "DART": m.DART(layer=early),
        "CDPruner": m.CDPruner(),
        "STAR": m.STAR(),
        "TopV, without recovery": m.TopV(layer=early, every=0),
        "SparseVLM": m.get("sparsevlm"),
        "SparseVLM+": m.get("sparsevlm:plus=true"),
        "IVC-Prune": m.get("ivc-prune:share=0.05"),
        "Nuwa": m.get("nuwa"),
        "V2Drop": m.get("v2drop"),
        "ToMe": m.get("tome:stop=-1"),
        "AiluRus, that share of the patches in the encoder": m.get("ailurus"),
    }


def earlier(method: m.Method, factor: float) -> m.Method:
    """The method with its layers, or its one layer, so much earlier; a layer of 0 stays."""

    def sooner(layer: Layer) -> Layer:
        if factor == 1 or not layer:
            return layer
        return layer * factor if isinstance(layer, float) else max(round(layer * factor), 1)

    if hasattr(method, "layers"):
        return replace(method, layers=tuple(map(sooner, method.layers)))
    return replace(method, layer=sooner(method.layer)) if hasattr(method, "layer") else method


def planned(plan: Plan, total: int, encoder: int) -> Iterator[tuple[float, str, m.Method]]:
    """(share, row, method) for all that can be met; `encoder` is the depth of the vision encoder."""
    for share in SHARES:
        average = share * total
        for name, method in rows(plan).items():
            for factor in EARLIER:
                try:
                    if isinstance(method, m.KNN):
                        found: m.Method = replace(method, count=int(average))
                    elif method.free is None:
                        found = replace(method, keep=share)
                    else:
                        found = rounded(earlier(method, factor).solve(average, [plan.shape], plan.depth))
                    if (tower := found.schedule().tower) is not None:
                        tower.plan(encoder, total)
                    yield share, name, found
                    break
                except PruningError:
                    continue
        yield from ((share, name, method) for name, method in plan.rivals(average) if name in ("uniform", "pooling"))


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="questions per task")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("results/catalogue"))
    arguments = parser.parse_args()
    questions = StudyQuestions.of(["embedded"], n=arguments.n, seed=arguments.seed)
    (data,), spec = questions.sets, ModelSpec(arguments.model)
    probe, about = probe_model(spec, questions), loading.describe(loading.check(spec))
    plan = Plan(probe.depth, probe.shape)
    encoder = loading.load_config(spec.path).vision_config.num_hidden_layers
    found = list(planned(plan, plan.shape[0] * plan.shape[1] * plan.shape[2], encoder))
    specs = list(dict.fromkeys([UNPRUNED, *(str(method) for *_, method in found)]))
    store = AnswerStore(arguments.out / "answers", {"model": about, "data": data.fingerprint})
    work = runner.by_method(runner.open_work([data], specs, store), specs)
    with Progress() as bar:
        answers = bar.add_task("answers", total=sum(len(piece.chunk) for piece in work))
        runner.run(
            spec, [data], work, store, processes=arguments.processes,
            done=lambda piece: bar.advance(answers, len(piece.chunk)),
        )  # fmt: skip
    results = StudyResults(
        questions.kinds, questions.tasks, {name: questions.read(store, name) for name in specs}, questions.item
    )
    document: dict[str, Any] = {
        "provenance": provenance(),
        "model": about,
        "questions": dict(Counter(data.splits)),
        "unpruned": results.row(UNPRUNED),
        "rows": [{"share": share, "name": name, **results.row(str(method))} for share, name, method in found],
    }
    files.make_directory(arguments.out, "--out")
    files.write_json(arguments.out / "catalogue.json", document)
    print(f"wrote {arguments.out / 'catalogue.json'}")


if __name__ == "__main__":
    main()
