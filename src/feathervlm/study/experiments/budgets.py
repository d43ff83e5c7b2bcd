"""Experiment 5: FEATHER against FastV, PyramidDrop and controls at the same average number of tokens."""

from matplotlib.figure import Figure

from feathervlm.evaluation.statistics import Estimate
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.study.aggregates import StudyResults
from feathervlm.study.experiments.base import Claim, Experiment, ExperimentResult, Table, Verdict, judge
from feathervlm.study.figures import KINDS, band
from feathervlm.study.plan import Plan, feather
from feathervlm.utils.plotting import axes

SECOND = (1 / 2, 9 / 16, 5 / 8, 3 / 4)
"""Shares of the depth at which FEATHER's second stage is tried; the first is its default."""

COLOURS = {
    "FEATHER": "#111827",
    "FastV": "#d97706",
    "PyramidDrop": "#15803d",
    "uniform": "#7c3aed",
    "pooling": "#db2777",
}
"""Colours of the methods; random tokens are grey."""


class Budgets(Experiment):
    """The paper's Table 3 and Fig. 5."""

    name = "5-feather"
    title = "FEATHER"
    question = "At equal cost, does FEATHER keep localization better than FastV, PyramidDrop, random, a grid, pooling?"
    source = "Table 3, Fig. 5"

    def _runs(self, plan: Plan) -> dict[tuple[float, str], str]:
        runs = {}
        for keep in plan.budgets:
            ours = feather(plan, keep)
            runs[keep, "FEATHER"] = str(ours)
            runs |= {(keep, name): str(method) for name, method in plan.rivals(plan.average(ours))}
        return runs

    def _sweep(self, plan: Plan) -> dict[int, str]:
        """Return FEATHER by the layer of its second stage."""
        shares = SECOND[:2] if plan.quick else SECOND
        return {plan.layer(share): str(feather(plan, second=share)) for share in shares}

    def methods(self, plan: Plan) -> list[str]:
        return [UNPRUNED, *self._runs(plan).values(), *self._sweep(plan).values()]

    def evaluate(self, plan: Plan, results: StudyResults) -> ExperimentResult:
        runs = self._runs(plan)
        tables = [self._table(f"Budget of FEATHER at keep={keep}", results,
                              {name: spec for (budget, name), spec in runs.items() if budget == keep})
                  for keep in plan.budgets]  # fmt: skip
        sweep = self._sweep(plan)
        later = {f"second stage before layer {layer}": spec for layer, spec in sweep.items()}
        tables.append(self._table("FEATHER at keep=0.3, by the layer of its second stage", results, later))
        figures = {"budgets": self._draw(plan, results, runs)}
        if len(sweep) > 1:
            figures["second"] = self._draw_sweep(results, sweep)
        return ExperimentResult(tables, self._claims(plan, results, runs), figures)

    def _table(self, title: str, results: StudyResults, runs: dict[str, str]) -> Table:
        kinds = [kind for kind in KINDS if results.tasks(kind)]
        halves = [True, False] if results.tasks("localization") else []
        rows: list[list[str | Estimate]] = []
        for name, spec in {"unpruned": UNPRUNED, **runs}.items():
            tokens, flops = results.cost(spec)
            cost = ["", "", ""] if spec == UNPRUNED else [f"`{spec}`", f"{tokens:.1f}", f"{1 - flops:.1%}"]
            measured = [results.mean(spec, kind) for kind in kinds] + [results.half(spec, top) for top in halves]
            rows.append([name, *cost, *measured])
        columns = ["method", "spec", "tokens per layer", "FLOPs saved", *(KINDS[kind][0] for kind in kinds)]
        return Table(title, [*columns, *(["targets in the top half", "bottom half"] if halves else [])], rows)

    def _claims(self, plan: Plan, results: StudyResults, runs: dict[tuple[float, str], str]) -> list[Claim]:
        if not results.tasks("localization"):
            return []
        papers = {
            (0.3, "FastV"): "localization 39.3 against 5.9 (FastV at 68 % saved, FEATHER at 64 %)",
            (0.3, "PyramidDrop"): "localization 39.3 against 28.9",
            (0.6, "FastV"): "localization 49.7 against 29.1 (FastV at 45 % saved, FEATHER at 48 %)",
            (0.6, "PyramidDrop"): "localization 49.7 against 46.6",
        }
        claims = []
        for (keep, rival), paper in papers.items():
            if (keep, rival) not in runs:
                continue
            gain = results.mean(runs[keep, "FEATHER"], "localization") - results.mean(runs[keep, rival], "localization")
            saved = "64 %" if keep == 0.3 else "48 %"
            claims.append(
                Claim(
                    f"feather-{rival.lower()}-{saved[:2]}",
                    f"At about {saved} saved FEATHER keeps localization better than {rival}.",
                    paper,
                    "reproduced: the interval of the gain at equal tokens is above 0; partly: the gain is",
                    {"gain": gain},
                    judge(gain.low > 0, gain.value > 0),
                )
            )
        claims += self._whole(plan, results, runs)
        return claims

    def _whole(self, plan: Plan, results: StudyResults, runs: dict[tuple[float, str], str]) -> list[Claim]:
        if not results.tasks("other"):
            return []
        location, other = (results.relative(runs[0.3, "FEATHER"], kind) for kind in KINDS)
        verdict: Verdict = judge(location.value >= 0.7 and other.value >= 0.95, location.value >= 0.5)
        return [
            Claim(
                "feather-keeps",
                "With 64 % saved FEATHER at its default layers keeps most of localization and nearly all else.",
                "localization 39.3 of 53.2 (74 %); others 61.9 of 64.1 and 66.1 of 66.1 (97 and 100 %)",
                "reproduced: it keeps 70 % of localization and 95 % of the others; partly: half of localization",
                {"localization kept": location, "others kept": other},
                verdict,
            )
        ]

    def _draw(self, plan: Plan, results: StudyResults, runs: dict[tuple[float, str], str]) -> tuple[Figure, str]:
        kinds = [kind for kind in KINDS if results.tasks(kind)]
        titles = [KINDS[kind][0] for kind in kinds]
        figure, plots = axes(len(kinds), "FLOPs saved", "mean accuracy", titles=titles, width=4.2)
        for plot, kind in zip(plots, kinds, strict=True):
            plot.axhline(results.mean(UNPRUNED, kind).value, color="grey", linestyle=":", linewidth=1)
            names = list(dict.fromkeys(name for _, name in runs))
            for name in names:
                specs = [runs[keep, name] for keep in plan.budgets if (keep, name) in runs]
                saved = [1 - results.cost(spec)[1] for spec in specs]
                look = {"linewidth": 2.5} if name == "FEATHER" else {"linewidth": 1.0, "alpha": 0.8}
                colour = COLOURS.get(name, "grey")
                label = name if name != "random 0" else "random, several seeds"
                label = "" if name.startswith("random") and name != "random 0" else label
                band(plot, saved, [results.mean(spec, kind) for spec in specs], colour, label, **look)
            plot.set_ylim(0, 1.03)
        plots[0].legend(fontsize=7, loc="lower left")
        return (
            figure,
            "All methods of a budget keep the same average number of tokens; 95 % intervals. Dotted: unpruned.",
        )

    def _draw_sweep(self, results: StudyResults, sweep: dict[int, str]) -> tuple[Figure, str]:
        figure, (plot,) = axes(1, "second stage before layer", "mean accuracy", height=3.0)
        for kind, (title, colour) in KINDS.items():
            if results.tasks(kind):
                band(plot, list(sweep), [results.mean(spec, kind) for spec in sweep.values()], colour, title)
                plot.axhline(results.mean(UNPRUNED, kind).value, color=colour, linestyle=":", linewidth=1)
        plot.set_xticks(list(sweep))
        plot.set_ylim(0, 1.03)
        plot.legend(loc="lower right")
        return (
            figure,
            "FEATHER at keep=0.3; the first point is its default. A later second stage costs more tokens.",
        )
