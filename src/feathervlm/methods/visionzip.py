"""VisionZip: the tokens that the vision encoder attends to most, and a sample of the others with the rest merged in."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from feathervlm.core import (
    Candidates,
    EncoderKeys,
    ImageTokens,
    Keep,
    Layer,
    Nearest,
    Schedule,
    Selector,
    Stage,
    Top,
    VisionAttention,
    check_choice,
    check_encoder_layer,
    check_keep,
    check_operands,
    kept,
    kept_tensor,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Sampled(Selector):
    """Keep what `first` keeps, and of the M tokens that it drops in an image every (M // keep)-th, `keep` of them.

    The sample starts with the first dropped token; if M is not a multiple of `keep`, the last ones lie after the
    sample.

    Args:
        first: Selector of the tokens that stay in any case.
        keep: Size of the sample, a number or a fraction of the original tokens.
    """

    first: Selector
    keep: Keep

    def __post_init__(self) -> None:
        check_operands(self.first)
        check_keep(self.keep)

    def select(self, tokens: Candidates) -> Tensor:
        first = self.first.select(tokens)
        rest, image = tokens.present & ~first, tokens.geometry.image
        count = Candidates(tokens.geometry, rest, tokens.signals).current()
        budget = kept_tensor(self.keep, tokens.original()).minimum(count)
        step = count // budget.clamp(min=1)
        # Index of every dropped token among the dropped tokens of its image.
        number = rest.cumsum(1) - 1 - (count.cumsum(1) - count).gather(1, image)
        step, budget = step.clamp(min=1).gather(1, image), budget.gather(1, image)
        return first | (rest & (number % step == 0) & (number // step < budget))

    def expected(self, image: ImageTokens) -> float:
        return min(self.first.expected(image) + kept(self.keep, image.original), image.current)

    def size(self, image: ImageTokens) -> int | None:
        first = self.first.size(image)
        return None if first is None else min(first + kept(self.keep, image.original), int(image.current))


@dataclass(frozen=True)
class VisionZip(Method):
    """Keep the tokens that [CLS] attends to most and a sample of the others, into which the rest are merged.

    `dominant` tokens have the highest attention in the vision encoder and are unchanged. Of the others every n-th is
    kept as a `contextual` token, and the rest go into the contextual token with the most similar key. It selects before
    the language model and does not read the text. Where an encoder has no [CLS], the attention that a patch receives
    from all patches is used.

    Paper and code: the paper describes averages, but the authors' code, which is implemented, adds the *mean* of the
    tokens that go into a contextual token to it, which about doubles its norm. It merges states of the encoder before
    the projector and its two-layer MLP; here what enters language model layer `layer` is merged, after the projector,
    which differs unless the projector is linear. Their [CLS] token, which counts as a dominant one, is not a visual
    token of these models and not kept. They order tokens as dominant, then contextual, and renumber positions; here all
    stay in raster order and keep theirs (`positions=renumber` renumbers). They prune every tile of a picture
    separately; here its tiles share one budget.

    Args:
        layer: Tokens leave before this layer of the language model.
        dominant: Fraction or number of visual tokens kept by attention. The authors' pairs for 576 tokens are 162 + 30,
            108 + 20 and 54 + 10.
        contextual: Fraction or number of visual tokens that the rest are merged into.
        encoder_layer: Layer of the vision encoder, for attention and keys; -2 is the last but one. Where layers have
            window attention, choose one with full attention (Qwen2.5-VL: -1).
        positions: `preserve` or `renumber`.
    """

    name: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "2412.04467 (CVPR 2025), dvlab-research/VisionZip"
    budget_parameter: ClassVar[str | None] = "dominant"

    layer: Layer = 0
    dominant: Keep = 0.21
    contextual: Keep = 0.04
    encoder_layer: int | float = -2
    positions: Literal["preserve", "renumber"] = "preserve"

    def schedule(self) -> Schedule:
        check_keep(self.dominant, "dominant")
        check_keep(self.contextual, "contextual")
        check_encoder_layer(self.encoder_layer, "encoder_layer")
        check_choice(self.positions, ("preserve", "renumber"), "positions")
        dominant = Top(VisionAttention(self.encoder_layer), self.dominant)
        merge = Nearest(EncoderKeys(self.encoder_layer), form="onto", exclude=dominant)
        return Schedule(Stage(self.layer, Sampled(dominant, self.contextual), self.positions, merge))
