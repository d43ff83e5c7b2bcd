"""DART: keep a few pivots and the tokens least similar to them."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from feathervlm.core import FarFromPivots, Keep, KeyNorm, Layer, Schedule, Stage, TextPart, Top, check_choice, check_int
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class DART(Method):
    """Keep a few pivots and the tokens least similar to each, because duplicates of a kept token are not needed.

    Pivots are the visual and the text tokens with the largest sum of |k| in the layer before the cut. Each pivot in
    turn, visual ones first, takes the visual tokens whose hidden state has the lowest cosine to its own. It selects at
    an early layer and reads no attention.

    Paper and code: the authors take floor(N (1 - r) / 8) tokens for each of eight pivots and add the four visual
    pivots, so they keep 8 floor(N (1 - r) / 8) + 4 tokens; here the budget includes the pivots, and the first pivots
    take the tokens that do not divide. Their order of pivots is that of a Python set; here it is that of the prompt.
    Several images share the text pivots. A port normalizes states by the model's last norm before comparing them; here
    the states that enter the layer are compared. This library chose the text after the last image, and keys before
    their rotation, because rotated keys make |k| depend on position and padding.

    Args:
        layer: Tokens leave before this layer.
        keep: Fraction or number of visual tokens kept, pivots included.
        pivots: Number of visual pivots of every image, at least 2.
        words: Number of text pivots; 0 for none.
        text: Text pivots are from the `question` after the last image, or from `all` of the prompt.
        rope: Whether keys are rotated, as in the cache.
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
        check_choice(self.text, get_args(TextPart), "text")
        check_int(self.pivots, "pivots", minimum=2)
        norm = KeyNorm(self.rope)
        far = FarFromPivots(
            Top(norm, self.pivots), self.keep, "hidden", words=self.words, text=self.text, keys=norm.signal
        )
        return Schedule(Stage(self.layer, far))
