"""From the kept tokens of many pictures to numbers: per stage, with intervals, beside what random tokens would give.

Knows masks, priors and pictures' names; knows no model, and judges nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from feathervlm.diagnosis import mask_statistics as kept
from feathervlm.diagnosis.mask_statistics import Floats, Mask
from feathervlm.diagnosis.rope_prior import prior_overlap, prior_rank_correlation
from feathervlm.evaluation.statistics import Bootstrap

DRAWS = 16
"""Random masks per picture and stage, to know what tokens that nobody chose would cover."""
ROUNDS = 1000
"""Of the bootstrap over pictures."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One picture under the method.

    Attributes:
        name: of its file.
        masks: for each stage the kept cells of the finest grid, bool (frames, rows, cols).
        kept: for each stage the tokens that are left, of all grids.
        tokens: visual tokens of the prompt.
        priors: for each stage where RoPE alone would look, (frames, rows, cols); None if there is no prior.
        foresight: for each stage the share of its tokens that the stage before it ranked best, and what drawing lots
            would give; None if that scored nothing.
        average_tokens: visual tokens per layer.
        flops_ratio: of the prefill, over the unpruned one.
        overlay: the picture with what was kept; None if it is not to be shown.
    """

    name: str
    masks: list[Mask]
    kept: list[tuple[int, ...]]
    tokens: int
    priors: list[Floats | None]
    foresight: list[tuple[float, float] | None]
    average_tokens: float
    flops_ratio: float
    overlay: Image.Image | None = None


@dataclass(frozen=True)
class Number:
    """A mean over pictures.

    Attributes:
        title: what it is, in a few words.
        value: None where there is none.
        low: end of the 95 % interval over pictures (Bayesian bootstrap); None with one picture.
        high: likewise.
        even: what as many random tokens would give; None where the question makes no sense.
        about: what it means.
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
        """Rounded, ready for JSON."""
        return {key: _rounded(getattr(self, key)) for key in ("value", "low", "high", "even")}


@dataclass(frozen=True)
class Measure:
    """Something to measure on a mask; `even` gives what random tokens have, None: draw some and see."""

    title: str
    of: Callable[[Mask], float]
    even: Callable[[Mask], float] | None
    about: str


MEASURES = {
    "mean_row": Measure(
        "mean row", kept.mean_row, lambda mask: 0.5, "0 is the top of the picture, 1 the bottom; FastV at layer 3 of "
        "the paper's model has 0.807 (arXiv 2412.13180)",
    ),
    "top": Measure("in the top third", lambda mask: kept.bottom_third(mask[:, ::-1]), lambda mask: 1 / 3, ""),
    "bottom": Measure("in the bottom third", kept.bottom_third, lambda mask: 1 / 3, ""),
    "left": Measure(
        "in the left third", lambda mask: kept.bottom_third(mask[:, :, ::-1].transpose(0, 2, 1)), lambda mask: 1 / 3, ""
    ),
    "right": Measure(
        "in the right third", lambda mask: kept.bottom_third(mask.transpose(0, 2, 1)), lambda mask: 1 / 3, ""
    ),
    "border": Measure(
        "at the border", kept.border_share, lambda mask: kept.even_border_share(mask.shape),
        "share of the kept tokens in the outermost ring of cells",
    ),
    "hole": Measure(
        "largest empty square", lambda mask: kept.largest_uncovered_square(mask) / min(mask.shape[1:]), None,
        "its side, as a share of the shorter side of the grid",
    ),
    "empty": Measure("empty blocks", kept.empty_blocks, None, "share of blocks of 3 x 3 cells without a kept token"),
}  # fmt: skip
"""What is measured on every mask."""


@dataclass(frozen=True, eq=False)
class Spread:
    """What one stage leaves, over all pictures.

    Attributes:
        layer: tokens leave before it.
        numbers: by name.
        rows: share of the kept tokens in each row, from the top.
        columns: likewise, from the left.
        heat: share of the pictures that keep each cell, (rows, cols).
        prior: the mean of the priors on the same grid; None if there is none.
        why_no_prior: the reason.
        row_test: chi-square of the row counts against an even spread, and its p; None if nothing is kept.
    """

    layer: int
    numbers: dict[str, Number]
    rows: Floats
    columns: Floats
    heat: Floats
    prior: Floats | None
    why_no_prior: str | None
    row_test: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; what is not a number is null."""
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


@dataclass(eq=False)
class Pictures:
    """All that was seen, and the means over it.

    Attributes:
        seen: picture by picture.
        layers: of the stages.
        why_no_prior: for each stage the reason, or None.
        seed: of the random tokens and of the bootstrap.
    """

    seen: Sequence[Seen]
    layers: Sequence[int]
    why_no_prior: Sequence[str | None]
    seed: int = 0
    _bootstrap: Bootstrap = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._bootstrap = Bootstrap({"pictures": len(self.seen)}, ROUNDS, self.seed)

    def number(self, title: str, values: Sequence[float], even: float | None = None, about: str = "") -> Number:
        """The mean of one value per picture; those that are not a number do not count."""
        found = self._bootstrap.mean("pictures", np.asarray(values, float))
        if not np.isfinite(found.value):
            return Number(title, None, even=even, about=about)
        if np.isfinite(values).sum() < 2:
            return Number(title, found.value, even=even, about=about)
        return Number(title, found.value, found.low, found.high, even, about)

    def spreads(self) -> list[Spread]:
        """Every stage."""
        return [self._spread(stage) for stage in range(len(self.layers))]

    def _spread(self, stage: int) -> Spread:
        masks = [one.masks[stage] for one in self.seen]
        shares = [mask.mean() for mask in masks]
        numbers = {"kept": self.number("kept share", shares, about="of the tokens of the finest grid")}
        rng = np.random.default_rng([self.seed, stage])
        for name, measure in MEASURES.items():
            values = [measure.of(mask) for mask in masks]
            even = float(np.mean([_even(measure, mask, rng) for mask in masks])) if any(shares) else None
            numbers[name] = self.number(measure.title, values, even, measure.about)
        numbers["alike"] = self._alike(masks)
        priors = [one.priors[stage] for one in self.seen]
        prior, heat = None, kept.heat_map(masks)
        if any(shares) and all(one is not None for one in priors):
            maps = [one for one in priors if one is not None]
            prior = kept.mean_map([one.mean(0) for one in maps], heat.shape)
            numbers |= self._prior_numbers(masks, maps, prior)
        foresight = [one.foresight[stage] for one in self.seen]
        if all(foresight):
            found, even = np.array(foresight, float).T
            numbers["foresight"] = self.number(
                "foreseen by the stage before", found, float(even.mean()),
                "share of these tokens that were the best of the survivors by the scores of the stage before",
            )  # fmt: skip
        rows = kept.row_profile(masks)
        test = None
        if any(shares):
            counts = np.sum([kept.row_profile([m], len(rows)) * m.sum() for m in masks if m.any()], axis=0)
            test = kept.chi_square(counts, np.full(len(rows), counts.sum() / len(rows)))
        columns = kept.column_profile(masks)
        return Spread(self.layers[stage], numbers, rows, columns, heat, prior, self.why_no_prior[stage], test)

    def _alike(self, masks: Sequence[Mask]) -> Number:
        """How many of a picture's kept cells another picture keeps as well."""
        title, about = "same from picture to picture", "share of a picture's kept cells that another one keeps, too"
        shape = kept.heat_map(masks).shape
        cells = np.stack(
            [kept.resample(np.any(mask, 0, keepdims=True)[0], (shape[0], shape[1])).ravel() for mask in masks]
        )
        cells = cells.astype(np.float64)
        if len(cells) < 2:
            return Number(title, None, about=about)
        common, sizes = cells @ cells.T, cells.sum(1)
        others = (common.sum(1) - sizes) / (len(cells) - 1)
        with np.errstate(invalid="ignore"):
            return self.number(title, others / sizes, float(cells.mean()) if sizes.any() else None, about)

    def _prior_numbers(self, masks: Sequence[Mask], priors: Sequence[Floats], prior: Floats) -> dict[str, Number]:
        shape = (prior.shape[0], prior.shape[1])
        shares = [prior_overlap(one, [mask]) for one, mask in zip(priors, masks, strict=True)]
        overlap = self.number(
            "where RoPE alone would look", shares, float(np.mean([mask.mean() for mask in masks])),
            "share of the kept tokens among as many that a query equal to every key would rank best",
        )  # fmt: skip
        cells = np.array([kept.resample(mask.mean(0), shape).ravel() for mask in masks])
        value = prior_rank_correlation(prior.ravel(), cells.mean(0))
        title, about = "rank correlation with RoPE's decay", "Spearman's, of heat map and prior; 0 where unrelated"
        if not np.isfinite(value):
            return {"prior_overlap": overlap, "prior_correlation": Number(title, None, even=0.0, about=about)}
        if len(cells) < 2:
            return {"prior_overlap": overlap, "prior_correlation": Number(title, value, even=0.0, about=about)}
        weights = np.random.default_rng(self.seed).exponential(size=(ROUNDS, len(cells)))
        draws = [prior_rank_correlation(prior.ravel(), drawn) for drawn in weights @ cells]
        low, high = map(float, np.nanquantile(draws, (0.025, 0.975)))
        return {"prior_overlap": overlap, "prior_correlation": Number(title, value, low, high, 0.0, about)}


def random_mask(mask: Mask, rng: np.random.Generator) -> Mask:
    """As many cells of the same grid, drawn at random."""
    cells = np.zeros(mask.size, bool)
    cells[rng.permutation(mask.size)[: int(mask.sum())]] = True
    return cells.reshape(mask.shape)


def _even(measure: Measure, mask: Mask, rng: np.random.Generator) -> float:
    if measure.even is not None:
        return measure.even(mask)
    return float(np.mean([measure.of(random_mask(mask, rng)) for _ in range(DRAWS)]))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)


def _plain(values: Floats) -> Any:
    return [_plain(value) for value in values] if values.ndim else _rounded(float(values))
