"""SparseVLM and SparseVLM+: what the words that the picture is about attend to, in three steps."""

from dataclasses import dataclass
from math import log
from typing import ClassVar, Literal, get_args

from feathervlm.core import (
    Clusters,
    Keep,
    Layer,
    PruningError,
    Schedule,
    Stage,
    TextPart,
    TextRaterAttention,
    Top,
    TopAndClusters,
    check_bool,
    check_choice,
    check_fraction,
    check_keep,
    check_layers,
    is_count,
)
from feathervlm.methods.base import Method

HEADS = 14 / 32
"""Share of the heads that SparseVLM+ reads."""
MIN_DECAY = 0.1
"""Smallest divisor of the attention of SparseVLM+."""


@dataclass(frozen=True)
class SparseVLM(Method):
    """Keep what the words that the picture is about attend to, and merge the best of the rest into a few tokens.

    Raters are chosen among the embeddings of the text after the image: the words that are more similar to visual tokens
    than the mean word is (softmax over the text of dot products). A token's score is the raters' attention in the layer
    before the cut, with RoPE, mean over raters and heads. Of the R tokens that leave at a stage, the best int(0.3 R) +
    1 = n form int(n / 10) + 1 clusters by density peaks, whose means stay. `plus` (SparseVLM+) merges nothing. It
    divides attention by what RoPE alone leaves between the positions of rater and token, and reads only the 14 of 32
    heads whose raters then attend most to the picture.

    By default the first form renumbers positions at every stage, as published, which costs localization;
    `positions=preserve` keeps them, and is needed by models whose positions have three axes. `plus` keeps them.

    Paper and code: counts are those of the code's tables, not the paper's rank of the attention, and merged tokens are
    added to them. The rows of the tables have names that are not their averages: the row for 192 costs 206.5 tokens per
    layer. This library chose how a row changes with the budget (`keep`). The code writes the mean of a cluster after
    all kept tokens; here it takes the place of the cluster's centre, in raster order. Where the code breaks ties by
    noise, the lower index wins. What RoPE leaves is the product of rotated vectors of ones, here divided by its value
    at the same position, which changes no ranking; the code divides by it even near and below zero, here it is at least
    0.1, so that no token gains more than tenfold. Several images share raters and heads. If no word is above the mean,
    where the code takes the mean of an empty set, all words are raters.

    Args:
        layers: Tokens leave before each of these, scored by the layer before (2, 6 and 15 in the paper's counting).
        keep: Fraction kept at the first stage, the others of `table` raised to the same power; None for the table
            itself.
        table: Fractions or numbers of the original tokens kept at each stage, without merged ones. None is the authors'
            row named 192, of 576: 300, 200 and 110, or 118 for `plus`. Their other rows are 303+110+36, 238+48+26 and
            66+30+17, for `plus` 238+108+60, 246+54+28 and 66+34+20.
        plus: Whether to run SparseVLM+.
        text: Raters are words of the `question` after the last image, or of `all` of the prompt.
        positions: `preserve` or `renumber`; None for the default of the form.
    """

    name: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = "2410.04417 (ICML 2025), Gumpest/SparseVLMs"

    layers: tuple[Layer, ...] = (3 / 32, 7 / 32, 16 / 32)
    keep: float | None = None
    table: tuple[Keep, ...] | None = None
    plus: bool = False
    text: TextPart = "question"
    positions: Literal["preserve", "renumber"] | None = None

    def schedule(self) -> Schedule:
        check_choice(self.text, get_args(TextPart), "text")
        if self.positions is not None:
            check_choice(self.positions, ("preserve", "renumber"), "positions")
        check_bool(self.plus, "plus")
        keeps = self._keeps()
        check_layers(self.layers, f"one for each of {keeps}", count=len(keeps))
        positions = self.positions or ("preserve" if self.plus else "renumber")
        rating = TextRaterAttention(self.text, HEADS, MIN_DECAY) if self.plus else TextRaterAttention(self.text)
        stages = []
        for layer, keep in zip(self.layers, keeps, strict=True):
            best = Top(rating, keep)
            if self.plus:
                stages.append(Stage(layer, best, positions))
            else:
                recycled = TopAndClusters(best)
                stages.append(Stage(layer, recycled, positions, Clusters(recycled)))
        return Schedule(*stages)

    def _keeps(self) -> tuple[Keep, ...]:
        """Return what every stage keeps."""
        table = (300 / 576, 200 / 576, (118 if self.plus else 110) / 576) if self.table is None else self.table
        if not isinstance(table, tuple | list) or not table:
            raise PruningError(f"table={table!r} must be a list of what the stages keep, such as 300+200+110.")
        for entry in table:
            check_keep(entry, "table")
        if self.keep is None:
            return tuple(table)
        check_fraction(self.keep)
        if any(map(is_count, table)) or table[0] == 1:
            raise PruningError(f"keep={self.keep!r} needs a table of fractions below 1, not table={table!r}.")
        power = log(self.keep) / log(table[0])
        return tuple(max(entry**power, 1e-9) for entry in table)  # a power may underflow to zero
