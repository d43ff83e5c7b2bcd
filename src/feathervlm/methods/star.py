"""STAR: attention among visual features before the language model, attention of the text in the middle of it."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from feathervlm.core import (
    FeatureAttention,
    Keep,
    Layer,
    Schedule,
    Stage,
    TextPart,
    Top,
    check_choice,
    check_fraction,
    check_layers,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class STAR(Method):
    """Prune by the attention among visual features, and later by the attention of the text to visual states.

    Both attentions compare vectors as they are: softmax(Q F^T / sqrt(dim)), without learned projections and without
    RoPE. Before the first layer the projected features of an image attend to each other; in the middle the hidden
    states of the text attend to those of the image. A token's score is the mean that it receives.

    Paper and code: no code is available, and the sources give neither layer nor ratios, which this library chose. They
    average the row that a token gives, which is the same number for every token; the only reading that ranks is the
    column that it receives, with a softmax over visual tokens. Some count generated text as well; here it is the text
    of the prompt.

    Args:
        layers: Tokens leave before the first layer by the image's own attention, before the second by the text's.
        keep: Fraction or number of visual tokens kept at the first stage.
        then: Fraction of these kept at the second stage.
        text: `all` of the prompt, or the `question` after the last image.
    """

    name: ClassVar[str] = "star"
    paper: ClassVar[str] = "2505.12359"

    layers: tuple[Layer, Layer] = (0, 0.5)
    keep: Keep = 0.5
    then: float = 0.5
    text: TextPart = "all"

    def schedule(self) -> Schedule:
        check_choice(self.text, get_args(TextPart), "text")
        check_fraction(self.then, "then")
        check_layers(self.layers, "0+16", count=2)
        first, second = self.layers
        own, asked = FeatureAttention("image", "projected"), FeatureAttention("text", "hidden", self.text)
        return Schedule(Stage(first, Top(own, self.keep)), Stage(second, Top(asked, self.then, of="current")))
