"""A criterion by what a token adds to the output of attention (VisiPruner)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.signals import HeadAttention, Signal, Values


@dataclass(frozen=True)
class Contribution(Criterion):
    """Length of a token's part of the last prompt token's attention output: ||concat_h(a_h v_h)|| (arXiv 2510.17205).

    It is measured in the last layer that saw all tokens, before the output projection. Query heads of a group share a
    value.
    """

    def signals(self) -> tuple[Signal, ...]:
        return HeadAttention(), Values()

    def score(self, tokens: Candidates) -> Tensor:
        attention = tokens.signals.read(HeadAttention())  # (batch, visual, heads)
        values = tokens.signals.read(Values()).float().square().sum(-1)  # (batch, visual, key-value heads)
        each = values.repeat_interleave(attention.shape[2] // values.shape[2], 2)
        total = (attention.square() * each.to(attention.device)).sum(2).sqrt()
        return torch.where(tokens.present.to(total.device), total, 0)
