"""LLaVA-PruMerge: the outliers of the vision encoder's attention, each with its nearest neighbours added."""

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
    Schedule,
    Selector,
    Stage,
    VisionAttention,
    check_bool,
    check_choice,
    check_encoder_layer,
    check_operands,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Supplemented(Selector):
    """Keep what `first` keeps of an image, about 1/r of its tokens, and every int(r / 3)-th token from int(r / 6) on.

    The sample is thus about three times as large as the first choice. As in the authors' code, the image's last token
    is never part of it.

    Args:
        first: Selector of the tokens that stay in any case.
    """

    first: Selector

    def __post_init__(self) -> None:
        check_operands(self.first)

    def select(self, tokens: Candidates) -> Tensor:
        first, image = self.first.select(tokens), tokens.geometry.image
        total = tokens.original()
        count = Candidates(tokens.geometry, first, tokens.signals).current()
        start, step = ((total // count.clamp(min=1) // part).gather(1, image) for part in (6, 3))
        index = torch.arange(image.shape[1], device=image.device)
        number, last = (at.gather(1, image) for at in (total.cumsum(1) - total, total - 1))
        number = index - number  # in the image
        sample = (number >= start) & ((number - start) % step.clamp(min=1) == 0) & (number < last)
        return first | (sample & tokens.present & (count.gather(1, image) > 0))

    def expected(self, image: ImageTokens) -> float:
        first = min(max(self.first.expected(image), 1.0), image.current)
        if not image.current:
            return 0.0
        step = int(image.original / first)
        share = len(range(step // 6, image.original - 1, max(step // 3, 1))) / image.original
        return first + share * (image.current - first)


@dataclass(frozen=True)
class PruMerge(Method):
    """Keep the outliers of the vision encoder's [CLS] attention, each with its nearest neighbours added.

    A token is an outlier if its attention is more than 1.5 interquartile ranges above the upper quartile, so the
    picture decides how many stay: about 5.5 % of 576. Each kept token adds the `neighbors` tokens of its image with the
    most similar keys, kept ones included, each times its attention. `plus` (PruMerge+) also keeps an evenly spaced
    sample, about a quarter of the tokens in all. It selects before the language model and does not read the text. Where
    an encoder has no [CLS], the attention that a patch receives from all patches is used.

    Paper and code: the paper describes a weighted average; the code, which is implemented, sums with weights that are
    not normalised, and the kept token has weight 1. Attention and keys are those of the undivided last layer, one
    softmax for all heads. The authors add one token, the weighted sum of all dropped tokens; it is not a token of the
    picture and not kept here. They merge states of the encoder before the projector; here what enters language model
    layer `layer` is merged, after the projector, which differs unless the projector is linear. They order tokens by
    attention and renumber positions; here tokens stay in raster order and keep theirs (`positions=renumber` renumbers).
    Outliers are determined image by image, in the code among all images of a batch; if there is none, the best token
    stays.

    Args:
        layer: Tokens leave before this layer of the language model.
        plus: Whether the sample is kept as well.
        factor: Distance of an outlier from the upper quartile, in interquartile ranges.
        neighbors: Number of tokens added to each kept token.
        encoder_layer: Layer of the vision encoder, for attention and keys; -1 is the last.
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
        check_choice(self.positions, ("preserve", "renumber"), "positions")
        check_encoder_layer(self.encoder_layer, "encoder_layer")
        check_bool(self.plus, "plus")
        attention = VisionAttention(self.encoder_layer, heads="joint")
        outliers = IQR(attention, self.factor)
        select = Supplemented(outliers) if self.plus else outliers
        merge = Neighbors(EncoderKeys(self.encoder_layer, "joint"), attention, self.neighbors)
        return Schedule(Stage(self.layer, select, self.positions, merge))
