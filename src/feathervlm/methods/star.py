"""STAR: what the image looks at before the language model, what the text looks at in the middle of it."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from feathervlm.core import (
    FeatureAttention,
    Keep,
    Layer,
    PruningError,
    Schedule,
    Stage,
    TextPart,
    Top,
    check_choice,
    check_fraction,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class STAR(Method):
    """Prune by what visual features attend to among themselves, and later by what the text attends to in them.

    Both attentions compare vectors as they are: softmax(Q F^T / sqrt(dim)), without learned projections and without
    RoPE. Before the first layer the projected features of an image look at each other; in the middle the hidden states
    of the text look at those of the image. A token's score is the mean of what it receives.

    Paper and code: no code can be had, and the sources give neither layer nor ratios, which are ours. They average the
    row that a token gives, which is the same number for every token; the only reading that ranks is the column that
    it receives, the softmax being over visual tokens. Some count generated text as well; here it is the prompt's.

    Args:
        layers: tokens leave before the first by the image's own attention, before the second by the text's.
        keep: fraction or number of visual tokens kept at first.
        then: fraction of these kept at the second layer.
        text: `all` of the prompt, or what is `behind` the last image.
    """

    name: ClassVar[str] = "star"
    paper: ClassVar[str] = "2505.12359"

    layers: tuple[Layer, Layer] = (0, 0.5)
    keep: Keep = 0.5
    then: float = 0.5
    text: TextPart = "all"

    def schedule(self) -> Schedule:
        """Two stages."""
        check_choice(self.text, get_args(TextPart), "text")
        check_fraction(self.then, "then")
        if not isinstance(self.layers, tuple | list) or len(self.layers) != 2:
            raise PruningError(f"layers={self.layers!r} must be two layers, such as 0+16.")
        first, second = self.layers
        own, asked = FeatureAttention("image", "projected"), FeatureAttention("text", "hidden", self.text)
        return Schedule(Stage(first, Top(own, self.keep)), Stage(second, Top(asked, self.then, of="current")))
