"""Experiment 2: where on the picture the kept tokens lie, by layer and criterion, and whether they hold the target."""

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from feathervlm.diagnosis import mask_statistics
from feathervlm.diagnosis.rope_prior import prior_rank_correlation
from feathervlm.evaluation.statistics import Estimate
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.methods import FastV
from feathervlm.study.aggregates import StudyResults
from feathervlm.study.experiments.base import Claim, Experiment, ExperimentResult, Table, judge
from feathervlm.study.figures import CRITERIA, KINDS, band
from feathervlm.study.plan import Plan
from feathervlm.utils.plotting import axes, bare


class Places(Experiment):
    """The paper's Fig. 3, and accuracy by layer."""

    name = "2-places"
    title = "Where the tokens go"
    question = "Which part of the picture does an attention criterion keep, at which layer, with and without RoPE?"
    source = "Fig. 3"

    def methods(self, plan: Plan) -> list[str]:
        return [UNPRUNED, *(self._spec(layer, rope) for rope in CRITERIA for layer in plan.layers)]

    def _spec(self, layer: int, rope: bool) -> str:
        return str(FastV(layer=layer, keep=0.25, rope=rope))

    def evaluate(self, plan: Plan, results: StudyResults) -> ExperimentResult:
        rows: list[list[str | Estimate]] = []
        for rope, (title, _) in CRITERIA.items():
            for layer in plan.layers:
                spec = self._spec(layer, rope)
                rows.append([f"{layer}", title, *self._where(results, spec)])
        columns = ["layer", "score", "mean row (even: 0.5)", "in the bottom third (even: 0.333)", "rows, chi-square"]
        columns += ["target cells kept"] if results.tasks("localization") else []
        columns += [KINDS[kind][0] for kind in KINDS if results.tasks(kind)]
        columns += ["targets in the top half", "bottom half"] if results.tasks("localization") else []
        columns += ["rank correlation with the RoPE prior"] if results.prior is not None else []
        table = Table("A quarter of the tokens, by last-token attention before each layer", columns, rows)
        figures = {"heat": self._heat(plan, results), "rows": self._profiles(plan, results)}
        figures["layers"] = self._curves(plan, results)
        notes = [] if results.prior is not None else [f"There is no RoPE prior to compare with: {results.no_prior}."]
        return ExperimentResult([table], self._claims(plan, results), figures, notes)

    def _where(self, results: StudyResults, spec: str) -> list[str | Estimate]:
        masks = results.masks(spec)
        cells: list[str | Estimate] = [
            results.of_masks(spec, mask_statistics.mean_row),
            results.of_masks(spec, mask_statistics.bottom_third),
            _chi_square(masks),
        ]
        if results.tasks("localization"):
            cells.append(results.recall(spec))
        cells += [results.mean(spec, kind) for kind in KINDS if results.tasks(kind)]
        if results.tasks("localization"):
            cells += [results.half(spec, top) for top in (True, False)]
        if results.prior is not None:
            prior = results.prior[0]
            cells.append(results.of_heat(spec, lambda heat: prior_rank_correlation(prior, heat), prior.shape))
        return cells

    def _claims(self, plan: Plan, results: StudyResults) -> list[Claim]:
        early, quarter = plan.early, plan.quarter
        with_rope, without = (
            results.of_masks(self._spec(early, rope), mask_statistics.mean_row) for rope in (True, False)
        )
        p = mask_statistics.chi_square(*_row_counts(results.masks(self._spec(early, True))))[1]
        claims = [
            Claim(
                "bottom-bias",
                "At an early layer the tokens that the criterion keeps lie at the bottom of the picture.",
                "mean row at 80.7 % of the height at K=3, p < 0.05",
                "reproduced: mean row of at least 0.65, its interval above 0.5, and p < 0.05; partly: the interval is "
                "above 0.5",
                {"mean row": with_rope},
                judge(with_rope.value >= 0.65 and with_rope.low > 0.5 and p < 0.05, with_rope.low > 0.5),
            ),
            Claim(
                "bias-is-rope",
                "Without RoPE in the score the bias is gone.",
                "shown as heat maps",
                "reproduced: the mean row is less than half as far from 0.5 as with RoPE, and higher with RoPE, with "
                "the interval of the difference above 0; partly: that interval is above 0",
                {"mean row, RoPE": with_rope, "mean row, RoPE-free": without, "difference": with_rope - without},
                judge(
                    abs(without.value - 0.5) < abs(with_rope.value - 0.5) / 2 and (with_rope - without).low > 0,
                    (with_rope - without).low > 0,
                ),
            ),
        ]
        if not results.tasks("localization"):
            return claims
        spec = self._spec(early, True)
        gap = (results.half(spec, False) / results.half(UNPRUNED, False)) - (
            results.half(spec, True) / results.half(UNPRUNED, True)
        )
        claims.append(
            Claim(
                "top-suffers",
                "Targets in the top half of the picture suffer most.",
                "follows from the heat maps; no number",
                "reproduced: relative accuracy is at least 0.1 higher in the bottom half, with the interval above 0; "
                "partly: the interval is above 0",
                {"bottom half minus top half": gap},
                judge(gap.value >= 0.1 and gap.low > 0, gap.low > 0),
            )
        )
        gain = results.mean(self._spec(quarter, True), "localization") - results.mean(spec, "localization")
        claims.append(
            Claim(
                "later-is-better",
                "The same criterion is better some layers later.",
                "localization 5.9 at K=3, 23.3 at K=8",
                "reproduced: localization gains at least 0.1 from the early layer to a quarter of the depth, with the "
                "interval above 0; partly: the interval is above 0",
                {"gain": gain},
                judge(gain.value >= 0.1 and gain.low > 0, gain.low > 0),
            )
        )
        return claims

    def _heat(self, plan: Plan, results: StudyResults) -> tuple[Figure, str]:
        layers = plan.layers
        extra = results.prior is not None
        figure, plots = axes(len(layers) + extra, width=2.0, height=4.4, rows=2)
        for row, (rope, (title, _)) in enumerate(CRITERIA.items()):
            for column, layer in enumerate(layers):
                plot = plots[row * (len(layers) + extra) + column]
                heat = mask_statistics.heat_map(results.masks(self._spec(layer, rope)))
                plot.imshow(heat, vmin=0, vmax=1, cmap="magma")
                plot.set_title(f"{title}, layer {layer}", fontsize=8)
        if results.prior is not None:
            plots[len(layers)].imshow(results.prior[0], cmap="magma")
            plots[len(layers)].set_title("RoPE prior", fontsize=8)
            plots[-1].set_visible(False)
        for plot in plots:
            bare(plot)
        return figure, (
            "Share of questions in which a cell is kept, black 0 to light 1; an even spread would be 0.25. The prior "
            "is q·k of equal vectors under RoPE alone, by distance to the query."
        )

    def _profiles(self, plan: Plan, results: StudyResults) -> tuple[Figure, str]:
        figure, plots = axes(2, "share of the kept tokens", "row", titles=[f"score {t}" for t, _ in CRITERIA.values()])
        for plot, rope in zip(plots, CRITERIA, strict=True):
            for number, layer in enumerate(plan.layers):
                profile = mask_statistics.row_profile(results.masks(self._spec(layer, rope)))
                shade = f"C{number}"
                plot.plot(profile, np.arange(len(profile)), color=shade, label=f"layer {layer}")
            plot.axvline(1 / len(profile), color="grey", linestyle=":", linewidth=1)
            plot.set_xlim(left=0)
            plot.invert_yaxis()
        plots[0].legend(fontsize=7)
        return figure, "Share of the kept tokens in each row, top of the picture at the top; dotted: an even spread."

    def _curves(self, plan: Plan, results: StudyResults) -> tuple[Figure, str]:
        views: list[tuple[str, Callable[[str], Estimate]]] = [
            (KINDS[kind][0], lambda spec, kind=kind: results.mean(spec, kind))  # type: ignore[misc]  # lambda
            for kind in KINDS
            if results.tasks(kind)
        ]
        if results.tasks("localization"):
            views.append(("target cells kept", results.recall))
        figure, plots = axes(len(views), "pruned before layer", titles=[title for title, _ in views], width=3.4)
        for plot, (_, measure) in zip(plots, views, strict=True):
            for rope, (title, colour) in CRITERIA.items():
                band(plot, plan.layers, [measure(self._spec(layer, rope)) for layer in plan.layers], colour, title)
            plot.set_ylim(0, 1.03)
            plot.set_xticks(plan.layers)
        for plot, kind in zip(plots, [kind for kind in KINDS if results.tasks(kind)], strict=False):
            plot.axhline(results.mean(UNPRUNED, kind).value, color="grey", linestyle=":", linewidth=1)
        if results.tasks("localization"):
            plots[-1].axhline(0.25, color="grey", linestyle=":", linewidth=1)
        plots[0].legend(loc="lower right")
        return (
            figure,
            "A quarter of the tokens kept; 95 % intervals. Dotted: unpruned accuracy; recall of random tokens.",
        )


def _row_counts(masks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of kept tokens by row, and those of an even spread."""
    profile = mask_statistics.row_profile(masks)
    total = sum(int(mask.sum()) for mask in masks)
    return profile * total, np.full(len(profile), total / len(profile))


def _chi_square(masks: list[np.ndarray]) -> str:
    statistic, p = mask_statistics.chi_square(*_row_counts(masks))
    return f"{statistic:.0f}, {'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}"
