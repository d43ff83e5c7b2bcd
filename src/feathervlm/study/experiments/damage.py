"""Experiment 1: what FastV costs on each task, at about a tenth of the depth, by the share of tokens removed."""

import numpy as np
from matplotlib.figure import Figure

from feathervlm.evaluation.statistics import Estimate
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import FastV
from feathervlm.study.aggregates import StudyResults
from feathervlm.study.experiments.base import Claim, Experiment, ExperimentResult, Table, judge
from feathervlm.study.figures import KINDS, label_positions
from feathervlm.study.plan import Plan
from feathervlm.utils.plotting import axes


class Damage(Experiment):
    """The paper's Fig. 2."""

    name = "1-damage"
    title = "Damage depends on the task"
    question = "How much does each task lose when FastV removes more and more visual tokens at an early layer?"
    source = "Fig. 2"

    def methods(self, plan: Plan) -> list[str]:
        return [UNPRUNED, *(self._spec(plan, keep) for keep in plan.kept)]

    def _spec(self, plan: Plan, keep: float) -> str:
        return str(FastV(layer=plan.early, keep=keep))

    def evaluate(self, plan: Plan, results: StudyResults) -> ExperimentResult:
        specs = {keep: self._spec(plan, keep) for keep in plan.kept}
        rows: list[list[str | Estimate]] = []
        for task in results.tasks():
            whole = results.accuracy(UNPRUNED, task)
            rows.append([task, whole, *(results.accuracy(spec, task) / whole for spec in specs.values())])
        for kind, (title, _) in KINDS.items():
            if results.tasks(kind):
                relative = [results.relative(spec, kind) for spec in specs.values()]
                rows.append([f"mean, {title}", results.mean(UNPRUNED, kind), *relative])
        for top in (True, False):
            if results.tasks("localization"):
                whole = results.half(UNPRUNED, top)
                half = [results.half(spec, top) / whole for spec in specs.values()]
                rows.append([f"localization, targets in the {'top' if top else 'bottom'} half", whole, *half])
        columns = ["task", "unpruned accuracy", *(f"relative, {1 - keep:.0%} removed" for keep in specs)]
        table = Table(
            f"FastV before layer {plan.early} of {plan.depth}: accuracy over unpruned accuracy", columns, rows
        )
        return ExperimentResult([table], self._claims(results, specs), {"damage": self._draw(plan, results, specs)})

    def _claims(self, results: StudyResults, specs: dict[float, str]) -> list[Claim]:
        if not (results.tasks("localization") and results.tasks("other")):
            return []
        claims = []
        location, other = (results.relative(specs[0.25], kind) for kind in KINDS)
        gap = other - location
        claims.append(
            Claim(
                "damage-75",
                "With 75 % of the tokens removed at an early layer localization collapses, other tasks hardly notice.",
                "localization keeps 9 to 14 %, eight other tasks 92 to 100 %, TextVQA 58 %",
                "reproduced: localization keeps less than half and the others at least 85 %, and the gap's interval is "
                "above 0; partly: localization's loss is at least twice that of the others, with the gap above 0",
                {"localization kept": location, "others kept": other, "gap": gap},
                judge(
                    location.value < 0.5 and other.value >= 0.85 and gap.low > 0,
                    1 - location.value >= 2 * (1 - other.value) and gap.low > 0,
                ),
            )
        )
        half = results.relative(specs[0.5], "localization")
        claims.append(
            Claim(
                "damage-50",
                "Half of the tokens removed cost localization a great part already.",
                "localization loses 45 %",
                "reproduced: it loses at least 20 %; partly: a loss, its interval below 1",
                {"localization kept": half},
                judge(half.value <= 0.8 and half.high < 1, half.high < 1),
            )
        )
        return claims

    def _draw(self, plan: Plan, results: StudyResults, specs: dict[float, str]) -> tuple[Figure, str]:
        figure, (plot,) = axes(1, "share of visual tokens removed", "accuracy over unpruned accuracy")
        x = [0.0, *(1 - keep for keep in specs)]
        lines = {
            task: [1.0, *((results.accuracy(s, task) / results.accuracy(UNPRUNED, task)).value for s in specs.values())]
            for task in results.tasks()
        }
        for (task, y), place in zip(
            lines.items(), label_positions([y[-1] for y in lines.values()], 0.042), strict=True
        ):
            _, colour = KINDS[results.kinds[task]]
            plot.plot(x, y, color=colour, alpha=0.35, linewidth=1)
            plot.annotate(task, (x[-1] + 0.01, place), va="center", fontsize=7, color=colour)
        for kind, (title, colour) in KINDS.items():
            if results.tasks(kind):
                means = [results.relative(spec, kind) for spec in specs.values()]
                plot.plot(x, [1.0, *(one.value for one in means)], color=colour, linewidth=2.5, marker="o", label=title)
                low, high = ([1.0, *(getattr(one, end) for one in means)] for end in ("low", "high"))
                plot.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        plot.set_ylim(0, 1.2)
        plot.set_xlim(0, max(x) + 0.16)
        plot.set_xticks(np.array(x), [f"{share:.0%}" for share in x])
        plot.legend(loc="lower left")
        return figure, (
            f"FastV before layer {plan.early} of {plan.depth}. Thin: single tasks; thick: means with 95 % intervals."
        )
