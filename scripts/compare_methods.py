"""Measures every method on the embedded model at the same average number of tokens.

The budgets are 33, 22 and 11 % of the visual tokens, averaged over layers. Random tokens, a grid and pooling are
measured for comparison. A method that cannot meet a budget at its default layers is moved to earlier ones; one that
cannot meet it at all is left out. Answers are stored next to the result, so that an interrupted run is resumed.

Example: python scripts/compare_methods.py --n 10 --out /tmp/catalogue
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
"""Budgets: average number of tokens per layer as a share of the visual tokens."""
EARLIER = (1.0, 0.5, 0.25)
"""Factors for the layers of a method, tried until the budget can be met."""


def rows(plan: Plan) -> dict[str, m.Method]:
    """Return the methods at their default layers, by the name of their row."""
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
    """Return the method with its layers multiplied by a factor of at most 1; a layer of 0 stays."""

    def move(layer: Layer) -> Layer:
        if factor == 1 or not layer:
            return layer
        return layer * factor if isinstance(layer, float) else max(round(layer * factor), 1)

    if hasattr(method, "layers"):
        return replace(method, layers=tuple(map(move, method.layers)))
    return replace(method, layer=move(method.layer)) if hasattr(method, "layer") else method


def planned(plan: Plan, total: int, encoder: int) -> Iterator[tuple[float, str, m.Method]]:
    """Yield (share, row, method) for every budget that a method can meet.

    Args:
        plan: Layers and grid of the model.
        total: Number of visual tokens.
        encoder: Number of layers of the vision encoder.
    """
    for share in SHARES:
        average = share * total
        for name, method in rows(plan).items():
            for factor in EARLIER:
                try:
                    if isinstance(method, m.KNN):
                        fitted: m.Method = replace(method, count=int(average))
                    elif method.budget_parameter is None:
                        fitted = replace(method, keep=share)
                    else:
                        fitted = rounded(earlier(method, factor).solve(average, [plan.shape], plan.depth))
                    if (merging := fitted.schedule().encoder) is not None:
                        merging.plan(encoder, total)
                    yield share, name, fitted
                    break
                except PruningError:
                    continue
        yield from ((share, name, method) for name, method in plan.rivals(average) if name in ("uniform", "pooling"))


def main() -> None:
    """Read the command line, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="questions per task (default: 100)")
    parser.add_argument("--seed", type=int, default=2, help="seed of the questions (default: 2)")
    parser.add_argument("--model", default="embedded", help="model directory (default: the embedded model)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--out", type=Path, default=Path("results/catalogue"), help="default: results/catalogue")
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
    files.make_directory(arguments.out)
    files.write_json(arguments.out / "catalogue.json", document)
    print(f"wrote {arguments.out / 'catalogue.json'}")


if __name__ == "__main__":
    main()
