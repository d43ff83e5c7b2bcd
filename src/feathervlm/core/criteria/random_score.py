"""Random scores, the control for any criterion."""

from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.tensor_ops import seeded_uniform
from feathervlm.core.validation import check_seed


@dataclass(frozen=True)
class RandomScore(Criterion):
    """Uniform random scores in [0, 1).

    The score of a token depends only on the seed and on its index among the visual tokens, so it is the same in any
    batch and at any stage.

    Args:
        seed: Seed of the random numbers.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def score(self, tokens: Candidates) -> Tensor:
        return seeded_uniform(tokens.present, self.seed)
