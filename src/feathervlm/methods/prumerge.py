"""LLaVA-PruMerge: the outliers of the vision encoder's attention, each with its nearest neighbours merged in."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feathervlm.core import (
    IQR,
    Candidates,
    EncoderKeys,
    ImageTokens,
    Layer,
    Neighbors,
    PruningError,
    Schedule,
    Selector,
    Stage,
    VisionAttention,
    check_choice,
    check_encoder_layer,
    check_operands,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Supplemented(Selector):
    """What `first` keeps of an image, about 1/r of its tokens, and every int(r / 3)-th token from int(r / 6) on.

    The sample is so about three times as large as what it supplements. The image's last token is never part of it, as
    in the authors' code.

    Args:
        first: tokens that stay in any case.
    """

    first: Selector

    def __post_init__(self) -> None:
        check_operands(self.first)

    def select(self, tokens: Candidates) -> Tensor:
        """The first ones and the sample."""
        first, image = self.first.select(tokens), tokens.geometry.image
        whole = tokens.original()
        found = Candidates(tokens.geometry, first, tokens.signals).current()
        start, step = ((whole // found.clamp(min=1) // part).gather(1, image) for part in (6, 3))
        index = torch.arange(image.shape[1], device=image.device)
        number, last = (at.gather(1, image) for at in (whole.cumsum(1) - whole, whole - 1))
        number = index - number  # in the image
        sample = (number >= start) & ((number - start) % step.clamp(min=1) == 0) & (number < last)
        return first | (sample & tokens.present & (found.gather(1, image) > 0))

    def expected(self, image: ImageTokens) -> float:
        """Both numbers, less the overlap of independent choices."""
        first = min(max(self.first.expected(image), 1.0), image.current)
        if not image.current:
            return 0.0
        step = int(image.original / first)
        share = len(range(step // 6, image.original - 1, max(step // 3, 1))) / image.original
        return first + share * (image.current - first)


@dataclass(frozen=True)
class PruMerge(Method):
    """Keep the outliers of the vision encoder's [CLS] attention, each with its nearest neighbours added on.

    A token is an outlier if its attention lies more than 1.5 interquartile ranges above the upper quartile, so the
    picture decides how many stay: about 5.5 % of 576. To each are added the `neighbors` tokens of its image with the
    most similar keys, kept ones included, each times its attention. Text plays no part. `plus` (PruMerge+) keeps an
    evenly spaced sample besides, about a quarter of the tokens in all. Where an encoder has no [CLS], the attention
    that a patch gets from all others takes its place.

    Paper and code: the paper speaks of a weighted average; the code sums with weights that are not normalised, and the
    kept token counts in full; this is the code. Attention and keys are those of the undivided last layer, one softmax
    for all heads. The authors' one token more, the weighted sum of all that is pruned, is no token of the picture and
    not kept. They merge states of the encoder before the projector; here what enters language model layer `layer` is
    merged, after the projector, which is not the same unless that is linear. They order tokens by attention at new,
    compact positions; here they stay in raster order and keep theirs (`positions=renumber` closes the gaps). Outliers
    are found image by image, in the code among all images of a batch; if there is none, the best token stays.

    Args:
        layer: tokens leave before this layer of the language model.
        plus: keep the sample, too.
        factor: how far above the upper quartile an outlier lies, in interquartile ranges.
        neighbors: tokens added to each that is kept.
        encoder_layer: of the vision encoder, for attention and keys; -1 is the last.
        positions: `preserve` or `renumber`.
    """

    name: ClassVar[str] = "prumerge"
    paper: ClassVar[str] = "2403.15388 (ICCV 2025), 42Shawn/LLaVA-PruMerge"
    budget_parameter: ClassVar[str | None] = None

    layer: Layer = 0
    plus: bool = False
    factor: float = 1.5
    neighbors: int = 32
    encoder_layer: int | float = -1
    positions: Literal["preserve", "renumber"] = "preserve"

    def schedule(self) -> Schedule:
        """One stage."""
        check_choice(self.positions, ("preserve", "renumber"), "positions")
        check_encoder_layer(self.encoder_layer, "encoder_layer")
        if not isinstance(self.plus, bool):
            raise PruningError(f"plus={self.plus!r} is neither true nor false.")
        attention = VisionAttention(self.encoder_layer, heads="joint")
        outliers = IQR(attention, self.factor)
        select = Supplemented(outliers) if self.plus else outliers
        merge = Neighbors(EncoderKeys(self.encoder_layer, "joint"), attention, self.neighbors)
        return Schedule(Stage(self.layer, select, self.positions, merge))
