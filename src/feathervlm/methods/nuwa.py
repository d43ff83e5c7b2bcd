"""Nuwa: the best of every small region with what surrounds it, and a second choice in the middle of the model."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from feathervlm.core import (
    Candidates,
    Criterion,
    Features,
    ImageRows,
    ImageTokens,
    Keep,
    LastTokenAttention,
    Layer,
    Neighborhood,
    PruningError,
    Schedule,
    Selector,
    Stage,
    Top,
    VisionAttention,
    check_choice,
    check_criterion,
    check_fraction,
    check_keep,
    kept,
    kept_tensor,
    part_of_each,
    rank_in_part,
)
from feathervlm.methods.base import Method

SIDE = 2
"""Side of a region."""


@dataclass(frozen=True)
class Regions(Selector):
    """The best tokens of every region of 2 x 2 cells, as many as the budget asks for on average, rounded up.

    With K tokens to keep of N, that is ceil(4 K / N) of each; where a side is odd, its last regions are smaller.

    Args:
        criterion: by which tokens are ranked.
        keep: the whole budget, a number or a fraction of the original tokens.
    """

    criterion: Criterion
    keep: Keep

    def __post_init__(self) -> None:
        check_criterion(self.criterion, "criterion")
        check_keep(self.keep)

    def select(self, tokens: Candidates) -> Tensor:
        """The best of the regions."""
        images = ImageRows(tokens)
        if not images.longest:
            return tokens.present
        whole = tokens.original().flatten()[:, None]
        each = -(-(SIDE**2) * kept_tensor(self.keep, whole) // whole.clamp(min=1))
        scores = images.take(tokens.score(self.criterion))
        rank = rank_in_part(images.present, part_of_each(images, "window", SIDE), scores)
        return images.put(images.present & (rank < each))

    def expected(self, image: ImageTokens) -> float:
        """That many of every region; in proportion where tokens are gone already."""
        each, count = -(-(SIDE**2) * kept(self.keep, image.original) // max(image.original, 1)), 0
        for plane in image.picture:
            frames, *sides = plane.shape
            heights, widths = ([min(SIDE, side - start) for start in range(0, side, SIDE)] for side in sides)
            count += frames * sum(min(each, height * width) for height in heights for width in widths)
        return count * image.current / max(image.original, 1)


@dataclass(frozen=True)
class Nuwa(Method):
    """Keep the best of small regions, let them take up what surrounds them, and let the text choose among them later.

    Every region of 2 x 2 tokens sends as many of its tokens as the budget asks for, those that [CLS] looks at most in
    the vision encoder; the best of these in the whole picture stay, so that no part of it is empty. The better half of
    them, the pillars, stay as they are; the others add up their surroundings, weighted by likeness and nearness. In
    the middle of the model the last prompt token's attention keeps a seventh. Where an encoder has no [CLS], the
    attention that a patch gets from all others takes its place.

    Paper and code: the code, whose score is the attention alone (in the paper times the length of the key) and whose
    pillars are from its 0.55 quantile on (in the paper by length of the key); later the last token's attention (in
    the paper the likeness to the mean of the text). It is run at 112, 224 or 336 of 576 tokens and then 16, 32 or 48,
    which it calls 64, 128 and 192 on average. It aggregates states of the encoder before the projector; here what
    enters language model layer 0 is aggregated, after the projector, which is not the same unless that is linear. It
    compares means of encoder layers 16 to 24; here those features are compared that the projector reads. Its distance
    of sqrt(280) cells is for 24 x 24; here it is the same share of the diagonal of any grid. What it does not cover,
    the odd row or column of a grid, has regions of its own here. Positions are kept, as in the code; the paper's
    alternative stretches those of the kept tokens over the whole range (`positions=stretch`).

    Args:
        layers: tokens leave, and take up others, before the first; the second is scored by the layer before it.
        keep: fraction or number of visual tokens kept at the first.
        then: fraction of these kept at the second.
        pillars: quantile of the kept tokens' attention from which on they take up nothing.
        encoder_layer: of the vision encoder; -2 is the last but one. Where patches see a window only, take one of full
            attention (Qwen2.5-VL: -1).
        positions: `preserve` or `stretch`.
    """

    name: ClassVar[str] = "nuwa"
    paper: ClassVar[str] = "2602.02951 (ICLR 2026), Man-PaperRejected/Nuwa"

    layers: tuple[Layer, Layer] = (0, 0.5)
    keep: Keep = 7 / 18
    then: float = 1 / 7
    pillars: float = 0.55
    encoder_layer: int | float = -2
    positions: Literal["preserve", "stretch"] = "preserve"

    def schedule(self) -> Schedule:
        """Regions and their surroundings, then the last token's attention."""
        check_keep(self.keep)
        check_fraction(self.then, "then")
        check_choice(self.positions, ("preserve", "stretch"), "positions")
        if not isinstance(self.layers, tuple | list) or len(self.layers) != 2:
            raise PruningError(f"layers={self.layers!r} must be two layers, such as 0+16.")
        attention = VisionAttention(self.encoder_layer)
        spread = Regions(attention, self.keep) >> Top(attention, self.keep)
        surroundings = Neighborhood(Features("vision"), attention, pillars=self.pillars)
        first, second = self.layers
        return Schedule(
            Stage(first, spread, self.positions, merge=surroundings),
            Stage(second, Top(LastTokenAttention(over="all"), self.then, of="current")),
        )
