"""Nuwa: the best of every small region with its surroundings, and a second choice in the middle of the model."""

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
    Schedule,
    Selector,
    Stage,
    Top,
    VisionAttention,
    check_choice,
    check_criterion,
    check_fraction,
    check_keep,
    check_layers,
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
    """Keep the best tokens of every region of 2 x 2 cells, as many as the budget asks for on average, rounded up.

    With K tokens to keep of N, that is ceil(4 K / N) of each region; where a side is odd, its last regions are smaller.

    Args:
        criterion: Criterion of the ranking.
        keep: The whole budget, a number or a fraction of the original tokens.
    """

    criterion: Criterion
    keep: Keep

    def __post_init__(self) -> None:
        check_criterion(self.criterion, "criterion")
        check_keep(self.keep)

    def select(self, tokens: Candidates) -> Tensor:
        images = ImageRows(tokens)
        if not images.longest:
            return tokens.present
        whole = tokens.original().flatten()[:, None]
        each = -(-(SIDE**2) * kept_tensor(self.keep, whole) // whole.clamp(min=1))
        scores = images.take(tokens.score(self.criterion))
        rank = rank_in_part(images.present, part_of_each(images, "window", SIDE), scores)
        return images.put(images.present & (rank < each))

    def expected(self, image: ImageTokens) -> float:
        each, count = -(-(SIDE**2) * kept(self.keep, image.original) // max(image.original, 1)), 0
        for plane in image.picture:
            frames, *sides = plane.shape
            heights, widths = ([min(SIDE, side - start) for start in range(0, side, SIDE)] for side in sides)
            count += frames * sum(min(each, height * width) for height in heights for width in widths)
        return count * image.current / max(image.original, 1)


@dataclass(frozen=True)
class Nuwa(Method):
    """Keep the best of small regions, add their surroundings to them, and let the text choose among them later.

    Every region of 2 x 2 tokens offers as many tokens as the budget asks for, those that [CLS] attends to most in the
    vision encoder; the best of these in the whole picture stay, so that no part of it is empty. The better half of
    them, the pillars, are unchanged; the others add up their surroundings, weighted by similarity and nearness. In the
    middle of the model the attention of the last prompt token keeps a seventh. Where an encoder has no [CLS], the
    attention that a patch receives from all patches is used.

    Paper and code: the code is implemented, whose score is the attention alone (in the paper times the length of the
    key), whose pillars start at the 0.55 quantile of the score (in the paper of the length of the key), and which later
    uses the last token's attention (in the paper the similarity to the mean of the text). It runs at 112, 224 or 336 of
    576 tokens and then 16, 32 or 48, which it calls 64, 128 and 192 on average. It aggregates states of the encoder
    before the projector; here what enters language model layer 0 is aggregated, after the projector, which differs
    unless the projector is linear. It compares means of encoder layers 16 to 24; here the features that the projector
    reads are compared. Its distance of sqrt(280) cells is for 24 x 24; here it is the same share of the diagonal of any
    grid. The odd row or column of a grid, which it does not cover, has regions of its own here. Positions are kept, as
    in the code; the paper's alternative stretches those of the kept tokens over the whole range (`positions=stretch`).

    Args:
        layers: Tokens leave, and merge, before the first layer; the second stage is scored with the layer before it.
        keep: Fraction or number of visual tokens kept at the first stage.
        then: Fraction of these kept at the second stage.
        pillars: Quantile of the kept tokens' attention from which on they add nothing.
        encoder_layer: Layer of the vision encoder; -2 is the last but one. Where layers have window attention, choose
            one with full attention (Qwen2.5-VL: -1).
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
        check_keep(self.keep)
        check_fraction(self.then, "then")
        check_choice(self.positions, ("preserve", "stretch"), "positions")
        check_layers(self.layers, "0+16", count=2)
        attention = VisionAttention(self.encoder_layer)
        spread = Regions(attention, self.keep) >> Top(attention, self.keep)
        surroundings = Neighborhood(Features("vision"), attention, pillars=self.pillars)
        first, second = self.layers
        return Schedule(
            Stage(first, spread, self.positions, merge=surroundings),
            Stage(second, Top(LastTokenAttention(over="all"), self.then, of="current")),
        )
