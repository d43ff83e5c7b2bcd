"""TopV: the tokens that a layer's output consists of, by optimal transport, and a sample of the others."""

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
    """Keep what `first` keeps, and of the tokens that it drops in an image the first and every n-th after it.

    Args:
        first: Selector of the tokens that stay in any case.
        every: N; 0 recovers none.
    """

    first: Selector
    every: int = 4

    def __post_init__(self) -> None:
        check_operands(self.first)
        check_int(self.every, "every", minimum=0)

    def select(self, tokens: Candidates) -> Tensor:
        first = self.first.select(tokens)
        if not self.every:
            return first
        rest, image = tokens.present & ~first, tokens.geometry.image
        count = Candidates(tokens.geometry, rest, tokens.signals).current()
        # Index of every dropped token among the dropped tokens of its image.
        number = rest.cumsum(1) - 1 - (count.cumsum(1) - count).gather(1, image)
        return first | (rest & (torch.remainder(number, self.every) == 0))

    def expected(self, image: ImageTokens) -> float:
        first = self.first.expected(image)
        return first + (image.current - first) / self.every if self.every else first

    def size(self, image: ImageTokens) -> int | None:
        first = self.first.size(image)
        if first is None or not self.every:
            return first
        return first + -(-(int(image.current) - first) // self.every)


@dataclass(frozen=True)
class TopV(Method):
    """Keep the tokens that supply most of a layer's inner states by optimal transport, and every n-th of the others.

    Sources are the states of visual tokens that enter the layer before the cut, targets are the outputs of the norm
    after its attention; moving one to the other costs the distance of states and of cells. It selects at an early layer
    and reads no attention.

    Paper and code: no official code is known. Weights, sigma and epsilon are those of a reimplementation; this library
    chose `keep`. If Sinkhorn's last step is on rows, as there, every token sends the same and the cost has no effect;
    here it is on columns. The third cost, the distance of a token to the middle of the picture, is constant along a
    row, so any step on rows cancels it, and it is count out. Cells are those of any grid, not of a square one.

    Args:
        layer: Tokens leave before this layer; they are scored with the layer before.
        keep: Fraction or number of visual tokens kept by transport.
        every: Every n-th of the other tokens stays as well; 0 for none.
        sigma: Reach of the distance of cells.
        epsilon: Weight of the entropy.
        iterations: Number of Sinkhorn iterations.
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
        transport = OptimalTransport(sigma=self.sigma, epsilon=self.epsilon, iterations=self.iterations)
        return Schedule(Stage(self.layer, Recovered(Top(transport, self.keep), self.every)))
