"""DART: a few pivots, and the tokens that are least like them."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from feathervlm.core import FarFromPivots, Keep, KeyNorm, Layer, Schedule, Stage, TextPart, Top, check_choice, check_int
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class DART(Method):
    """Keep a few pivots and the tokens least similar to each, because what duplicates a kept token is not needed.

    Pivots are the visual and the text tokens whose keys have the largest sum of |k| in the layer before the cut. One
    after the other, visual ones first, takes the visual tokens whose hidden state has the lowest cosine to its own. No
    attention is read.

    Paper and code: the authors take floor(N (1 - r) / 8) for each of eight pivots and add the four visual ones, so they
    keep 8 floor(N (1 - r) / 8) + 4 tokens; here it is the budget, pivots included, and the first pivots take the odd
    ones. Their order of pivots is that of a Python set; here it is that of the prompt. Several images share the text
    pivots. A port norms states by the model's last norm before they are compared; here they are compared as they enter
    the layer. The text behind the last image, and keys before their rotation, with which |k| would depend on the
    position and on padding, are our reading.

    Args:
        layer: tokens leave before this layer.
        keep: fraction or number of visual tokens kept, pivots included.
        pivots: visual pivots of every image, at least 2.
        words: text pivots; 0 leaves the text out of it.
        text: these are `behind` the last image, or of `all` the prompt.
        rope: take keys as they are cached, rotated.
    """

    name: ClassVar[str] = "dart"
    paper: ClassVar[str] = "2502.11494 (EMNLP 2025), ZichenWen1/DART"

    layer: Layer = 2 / 32
    keep: Keep = 1 / 9
    pivots: int = 4
    words: int = 4
    text: TextPart = "question"
    rope: bool = False

    def schedule(self) -> Schedule:
        """One stage."""
        check_choice(self.text, get_args(TextPart), "text")
        check_int(self.pivots, "pivots", minimum=2)
        norm = KeyNorm(self.rope)
        far = FarFromPivots(
            Top(norm, self.pivots), self.keep, "hidden", words=self.words, text=self.text, keys=norm.signal
        )
        return Schedule(Stage(self.layer, far))
