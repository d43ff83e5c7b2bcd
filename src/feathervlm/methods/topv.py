"""TopV: the tokens that a layer's output is made of, by optimal transport, and a sample of the others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from feathervlm.core import (
    Candidates,
    ImageTokens,
    Keep,
    Layer,
    OptimalTransport,
    Schedule,
    Selector,
    Stage,
    Top,
    check_int,
    check_operands,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Recovered(Selector):
    """What `first` keeps, and of the tokens that it leaves in an image the first and every n-th after it.

    Args:
        first: tokens that stay in any case.
        every: n; 0 recovers none.
    """

    first: Selector
    every: int = 4

    def __post_init__(self) -> None:
        check_operands(self.first)
        check_int(self.every, "every", minimum=0)

    def select(self, tokens: Candidates) -> Tensor:
        """The first ones and the sample."""
        first = self.first.select(tokens)
        if not self.every:
            return first
        rest, image = tokens.present & ~first, tokens.geometry.image
        left = Candidates(tokens.geometry, rest, tokens.signals).current()
        number = rest.cumsum(1) - 1 - (left.cumsum(1) - left).gather(1, image)  # among those left of the image
        return first | (rest & (torch.remainder(number, self.every) == 0))

    def expected(self, image: ImageTokens) -> float:
        """Both numbers."""
        first = self.first.expected(image)
        return first + (image.current - first) / self.every if self.every else first

    def size(self, image: ImageTokens) -> int | None:
        """Known if that of the first ones is."""
        first = self.first.size(image)
        if first is None or not self.every:
            return first
        return first + -(-(int(image.current) - first) // self.every)


@dataclass(frozen=True)
class TopV(Method):
    """Keep the tokens that supply most of a layer's inner states by optimal transport, and every n-th of the others.

    Sources are the visual tokens' states that enter the layer before the cut, targets what that layer's norm behind its
    attention gives out; moving one to the other costs the distance of states and of cells. No attention is read.

    Paper and code: no official code is known. Weights, sigma and epsilon are those of a reimplementation; `keep` is
    ours. If Sinkhorn's last step is on rows, as there, every token sends the same and the cost does not count; here it
    is on columns. The third cost, the distance of a token to the middle of the picture, is the same along a row, so any
    step on rows undoes it, and it is left out. Cells are those of any grid, not of a square one.

    Args:
        layer: tokens leave before this layer; the one before it tells.
        keep: fraction or number of visual tokens kept by transport.
        every: of the others each n-th in order stays as well; 0 for none.
        sigma: reach of the distance of cells.
        epsilon: weight of the entropy.
        iterations: of Sinkhorn.
    """

    name: ClassVar[str] = "topv"
    paper: ClassVar[str] = "2503.18278 (CVPR 2025)"

    layer: Layer = 3 / 32
    keep: Keep = 0.25
    every: int = 4
    sigma: float = 10.0
    epsilon: float = 0.1
    iterations: int = 3

    def schedule(self) -> Schedule:
        """One stage."""
        transport = OptimalTransport(sigma=self.sigma, epsilon=self.epsilon, iterations=self.iterations)
        return Schedule(Stage(self.layer, Recovered(Top(transport, self.keep), self.every)))
