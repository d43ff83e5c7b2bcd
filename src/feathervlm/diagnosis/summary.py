"""Numbers from the kept tokens of many pictures: per stage, with intervals, beside those of as many random tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feathervlm.diagnosis import mask_statistics as statistics
from feathervlm.diagnosis.mask_statistics import Floats, Mask
from feathervlm.diagnosis.observe import Observation
from feathervlm.diagnosis.rope_prior import prior_overlap, prior_rank_correlation
from feathervlm.evaluation.statistics import Bootstrap

DRAWS = 16
"""Random masks per picture and stage, for the numbers of random tokens."""
ROUNDS = 1000
"""Rounds of the bootstrap over pictures."""


@dataclass(frozen=True)
class Statistic:
    """A mean over pictures.

    Attributes:
        title: Name in a few words.
        value: Mean; None if no picture has a value.
        low: Lower end of the 95 % interval over pictures (Bayesian bootstrap); None with fewer than two pictures.
        high: Upper end of the interval.
        even: Value for as many random tokens; None where random tokens make no sense.
        about: Meaning of the number.
    """

    title: str
    value: float | None
    low: float | None = None
    high: float | None = None
    even: float | None = None
    about: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return "none"
        return f"{self.value:.2f}" + ("" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]")

    def to_dict(self) -> dict[str, Any]:
        """Return rounded values, ready for JSON."""
        return {key: _rounded(getattr(self, key)) for key in ("value", "low", "high", "even")}


@dataclass(frozen=True)
class MaskMeasure:
    """A number of a mask, and the function that gives the number of random tokens; None to measure random masks."""

    title: str
    of: Callable[[Mask], float]
    even: Callable[[Mask], float] | None
    about: str


MEASURES = {
    "mean_row": MaskMeasure(
        "mean row", statistics.mean_row, lambda mask: 0.5, "0 is the top of the picture, 1 the bottom; FastV at layer "
        "3 of the paper's model has 0.807 (arXiv 2412.13180)",
    ),
    "top": MaskMeasure(
        "in the top third", lambda mask: statistics.bottom_third(mask[:, ::-1]), lambda mask: 1 / 3, ""
    ),
    "bottom": MaskMeasure("in the bottom third", statistics.bottom_third, lambda mask: 1 / 3, ""),
    "left": MaskMeasure(
        "in the left third", lambda mask: statistics.bottom_third(mask[:, :, ::-1].transpose(0, 2, 1)),
        lambda mask: 1 / 3, "",
    ),
    "right": MaskMeasure(
        "in the right third", lambda mask: statistics.bottom_third(mask.transpose(0, 2, 1)), lambda mask: 1 / 3, ""
    ),
    "border": MaskMeasure(
        "at the border", statistics.border_share, lambda mask: statistics.even_border_share(mask.shape),
        "share of the kept tokens in the outermost ring of cells",
    ),
    "hole": MaskMeasure(
        "largest empty square", lambda mask: statistics.largest_uncovered_square(mask) / min(mask.shape[1:]), None,
        "its side, as a share of the shorter side of the grid",
    ),
    "empty": MaskMeasure(
        "empty blocks", statistics.empty_blocks, None, "share of blocks of 3 x 3 cells without a kept token"
    ),
}  # fmt: skip
"""The measures of every mask."""


@dataclass(frozen=True, eq=False)
class StageSummary:
    """Where one stage keeps tokens, over all pictures.

    Attributes:
        layer: Layer before which tokens leave.
        numbers: Numbers by name.
        rows: Share of the kept tokens in each row, from the top.
        columns: Share of the kept tokens in each column, from the left.
        heat: Share of the pictures that keep each cell, (rows, cols).
        prior: Mean RoPE prior on the same grid; None if there is none.
        why_no_prior: Reason why there is no prior.
        row_test: Chi-square of the row counts against an even spread, and its p; None if nothing is kept.
    """

    layer: int
    numbers: dict[str, Statistic]
    rows: Floats
    columns: Floats
    heat: Floats
    prior: Floats | None
    why_no_prior: str | None
    row_test: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; null replaces NaN."""
        test = self.row_test
        return {
            "layer": self.layer,
            "numbers": {name: number.to_dict() for name, number in self.numbers.items()},
            "rows": _plain(self.rows),
            "columns": _plain(self.columns),
            "heat": _plain(self.heat),
            "prior": None if self.prior is None else _plain(self.prior),
            "why_no_prior": self.why_no_prior,
            "row_chi_square": None if test is None else {"statistic": round(test[0], 2), "p": float(f"{test[1]:.3g}")},
        }


class Summarizer:
    """Computes means over pictures, with intervals from one bootstrap.

    Args:
        observations: Pictures under the method.
        layers: Layers of the stages.
        why_no_prior: Reason why a stage has no prior, or None, for each stage.
        seed: Seed of the random tokens and of the bootstrap.
    """

    def __init__(
        self,
        observations: Sequence[Observation],
        layers: Sequence[int],
        why_no_prior: Sequence[str | None],
        seed: int = 0,
    ) -> None:
        self.observations, self.layers, self.why_no_prior, self.seed = observations, layers, why_no_prior, seed
        self._bootstrap = Bootstrap({"pictures": len(observations)}, ROUNDS, seed)

    def statistic(self, title: str, values: Sequence[float], even: float | None = None, about: str = "") -> Statistic:
        """Return the mean of one value per picture; NaN values do not count."""
        estimate = self._bootstrap.mean("pictures", np.asarray(values, float))
        if not np.isfinite(estimate.value):
            return Statistic(title, None, even=even, about=about)
        if np.isfinite(values).sum() < 2:
            return Statistic(title, estimate.value, even=even, about=about)
        return Statistic(title, estimate.value, estimate.low, estimate.high, even, about)

    def stages(self) -> list[StageSummary]:
        """Return the summary of every stage."""
        return [self._stage(stage) for stage in range(len(self.layers))]

    def _stage(self, stage: int) -> StageSummary:
        masks = [one.masks[stage] for one in self.observations]
        shares = [mask.mean() for mask in masks]
        numbers = {"kept": self.statistic("kept share", shares, about="of the tokens of the finest grid")}
        rng = np.random.default_rng([self.seed, stage])
        for name, measure in MEASURES.items():
            values = [measure.of(mask) for mask in masks]
            even = float(np.mean([_even(measure, mask, rng) for mask in masks])) if any(shares) else None
            numbers[name] = self.statistic(measure.title, values, even, measure.about)
        numbers["alike"] = self._alike(masks)
        priors = [one.priors[stage] for one in self.observations]
        prior, heat = None, statistics.heat_map(masks)
        if any(shares) and all(one is not None for one in priors):
            maps = [one for one in priors if one is not None]
            prior = statistics.mean_map([one.mean(0) for one in maps], heat.shape)
            numbers |= self._prior_numbers(masks, maps, prior)
        foresight = [one.foresight[stage] for one in self.observations]
        if all(foresight):
            foreseen, even_shares = np.array(foresight, float).T
            numbers["foresight"] = self.statistic(
                "foreseen by the stage before", foreseen, float(even_shares.mean()),
                "share of these tokens that were the best of the survivors by the scores of the stage before",
            )  # fmt: skip
        rows = statistics.row_profile(masks)
        test = None
        if any(shares):
            counts = np.sum([statistics.row_profile([m], len(rows)) * m.sum() for m in masks if m.any()], axis=0)
            test = statistics.chi_square(counts, np.full(len(rows), counts.sum() / len(rows)))
        columns = statistics.column_profile(masks)
        return StageSummary(self.layers[stage], numbers, rows, columns, heat, prior, self.why_no_prior[stage], test)

    def _alike(self, masks: Sequence[Mask]) -> Statistic:
        """Return the share of a picture's kept cells that another picture keeps as well."""
        title, about = "same from picture to picture", "share of a picture's kept cells that another one keeps, too"
        shape = statistics.heat_map(masks).shape
        cells = np.stack(
            [statistics.resample(np.any(mask, 0, keepdims=True)[0], (shape[0], shape[1])).ravel() for mask in masks]
        )
        cells = cells.astype(np.float64)
        if len(cells) < 2:
            return Statistic(title, None, about=about)
        common, sizes = cells @ cells.T, cells.sum(1)
        others = (common.sum(1) - sizes) / (len(cells) - 1)
        with np.errstate(invalid="ignore"):
            return self.statistic(title, others / sizes, float(cells.mean()) if sizes.any() else None, about)

    def _prior_numbers(self, masks: Sequence[Mask], priors: Sequence[Floats], prior: Floats) -> dict[str, Statistic]:
        shape = (prior.shape[0], prior.shape[1])
        shares = [prior_overlap(one, [mask]) for one, mask in zip(priors, masks, strict=True)]
        overlap = self.statistic(
            "where RoPE alone would look", shares, float(np.mean([mask.mean() for mask in masks])),
            "share of the kept tokens among as many that a query equal to every key would rank best",
        )  # fmt: skip
        cells = np.array([statistics.resample(mask.mean(0), shape).ravel() for mask in masks])
        correlation = prior_rank_correlation(prior.ravel(), cells.mean(0))
        value = correlation if np.isfinite(correlation) else None
        title, about = "rank correlation with RoPE's decay", "Spearman's, of heat map and prior; 0 where unrelated"
        if value is None or len(cells) < 2:
            return {"prior_overlap": overlap, "prior_correlation": Statistic(title, value, even=0.0, about=about)}
        weights = np.random.default_rng(self.seed).exponential(size=(ROUNDS, len(cells)))
        draws = [prior_rank_correlation(prior.ravel(), drawn) for drawn in weights @ cells]
        low, high = map(float, np.nanquantile(draws, (0.025, 0.975)))
        return {"prior_overlap": overlap, "prior_correlation": Statistic(title, value, low, high, 0.0, about)}


def random_mask(mask: Mask, rng: np.random.Generator) -> Mask:
    """Return a mask of as many random cells of the same grid."""
    cells = np.zeros(mask.size, bool)
    cells[rng.permutation(mask.size)[: int(mask.sum())]] = True
    return cells.reshape(mask.shape)


def _even(measure: MaskMeasure, mask: Mask, rng: np.random.Generator) -> float:
    if measure.even is not None:
        return measure.even(mask)
    return float(np.mean([measure.of(random_mask(mask, rng)) for _ in range(DRAWS)]))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)


def _plain(values: Floats) -> Any:
    return [_plain(value) for value in values] if values.ndim else _rounded(float(values))
