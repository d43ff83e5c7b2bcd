"""Experiment 4: the criteria side by side at two depths."""

from math import ceil

from matplotlib.figure import Figure

from feathervlm.evaluation.statistics import Estimate
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import KNN, Ensemble, FastV, Method, Uniform
from feathervlm.study.aggregates import StudyResults
from feathervlm.study.experiments.base import Claim, Experiment, ExperimentResult, Table, judge
from feathervlm.study.figures import KINDS
from feathervlm.study.plan import Plan
from feathervlm.utils.plotting import axes

NAMES = ("RoPE", "RoPE-free", "KNN density", "uniform", "RoPE-free + uniform")


class Criteria(Experiment):
    """The paper's Table 1."""

    name = "4-criteria"
    title = "Criteria"
    question = "Which criterion keeps localization, at a tenth and at a quarter of the depth?"
    source = "Table 1"

    def _runs(self, plan: Plan) -> dict[tuple[int, str], str]:
        _, rows, cols = plan.shape
        runs: dict[tuple[int, str], str] = {}
        for layer in (plan.early, plan.quarter):
            methods: list[Method] = [
                FastV(layer=layer),
                FastV(layer=layer, rope=False),
                KNN(layer=layer, count=max(ceil(rows / 2) * ceil(cols / 2), 2)),
                Uniform(layer=layer, stride=2),
                Ensemble(layer=layer),
            ]
            runs |= {(layer, name): str(method) for name, method in zip(NAMES, methods, strict=True)}
        return runs

    def methods(self, plan: Plan) -> list[str]:
        return [UNPRUNED, *self._runs(plan).values()]

    def evaluate(self, plan: Plan, results: StudyResults) -> ExperimentResult:
        runs = self._runs(plan)
        kinds = [kind for kind in KINDS if results.tasks(kind)]
        halves = [True, False] if results.tasks("localization") else []
        rows: list[list[str | Estimate]] = []
        for (layer, name), spec in {(0, "unpruned"): UNPRUNED, **runs}.items():
            tokens, flops = results.cost(spec)
            cost = ["", ""] if spec == UNPRUNED else [f"{tokens:.0f}", f"{1 - flops:.0%}"]
            measured = [results.mean(spec, kind) for kind in kinds] + [results.half(spec, top) for top in halves]
            rows.append([str(layer or ""), name, *cost, *measured])
        columns = ["layer", "criterion", "tokens per layer", "FLOPs saved", *(KINDS[kind][0] for kind in kinds)]
        columns += ["targets in the top half", "bottom half"] if halves else []
        table = Table("About a quarter of the tokens kept; mean accuracy", columns, rows)
        if "localization" not in kinds:
            return ExperimentResult([table], [])
        return ExperimentResult(
            [table], self._claims(plan, results, runs), {"criteria": self._draw(plan, results, runs)}
        )

    def _claims(self, plan: Plan, results: StudyResults, runs: dict[tuple[int, str], str]) -> list[Claim]:
        def gain(better: str, than: str, layer: int) -> Estimate:
            return results.mean(runs[layer, better], "localization") - results.mean(runs[layer, than], "localization")

        claims = []
        comparisons = [
            ("rope-free-helps", "Scores without RoPE keep localization better.", "RoPE-free", "RoPE",
             "localization 16.7 against 5.9 at K=3, 27.3 against 23.3 at K=8"),
            ("grid-beats-early-scores", "A plain grid beats attention scores.", "uniform", "RoPE-free",
             "localization 28.0 against 16.7 at K=3, 30.3 against 27.3 at K=8"),
            ("grid-helps-scores", "A grid beside RoPE-free scores mends them.", "RoPE-free + uniform", "RoPE-free",
             "localization 27.2 against 16.7 at K=3, 35.6 against 27.3 at K=8"),
            ("scores-help-grid", "At a quarter of the depth scores and grid together beat the grid alone.",
             "RoPE-free + uniform", "uniform", "localization 35.6 against 30.3 at K=8; 27.2 against 28.0 at K=3"),
        ]  # fmt: skip
        for name, claim, better, than, paper in comparisons:
            early, quarter = gain(better, than, plan.early), gain(better, than, plan.quarter)
            if name == "scores-help-grid":
                rule = "reproduced: the interval of the gain at a quarter of the depth is above 0; partly: the gain is"
                verdict = judge(quarter.low > 0, quarter.value > 0)
            else:
                rule = "reproduced: the interval of the gain is above 0 at both depths; partly: at one of them"
                verdict = judge(early.low > 0 and quarter.low > 0, early.low > 0 or quarter.low > 0)
            measured = {f"gain, layer {plan.early}": early, f"gain, layer {plan.quarter}": quarter}
            claims.append(Claim(name, claim, paper, rule, measured, verdict))
        return claims

    def _draw(self, plan: Plan, results: StudyResults, runs: dict[tuple[int, str], str]) -> tuple[Figure, str]:
        layers = (plan.early, plan.quarter)
        figure, plots = axes(2, "mean accuracy", titles=[f"before layer {layer}" for layer in layers], height=2.8)
        for plot, layer in zip(plots, layers, strict=True):
            for shift, kind in zip((-0.18, 0.18), KINDS, strict=True):
                if not results.tasks(kind):
                    continue
                title, colour = KINDS[kind]
                estimates = [results.mean(runs[layer, name], kind) for name in NAMES]
                error = [[max(e.value - e.low, 0) for e in estimates], [max(e.high - e.value, 0) for e in estimates]]
                places = [number + shift for number in range(len(NAMES))]
                plot.barh(places, [e.value for e in estimates], 0.34, xerr=error, color=colour, label=title)
                plot.axvline(results.mean(UNPRUNED, kind).value, color=colour, linestyle=":", linewidth=1)
            plot.set_yticks(range(len(NAMES)), NAMES)
            plot.set_xlim(0, 1.03)
            plot.invert_yaxis()
        figure.legend(*plots[0].get_legend_handles_labels(), fontsize=8, ncols=2, loc="outside upper center")
        return figure, "Mean accuracy with 95 % intervals; dotted: unpruned."
