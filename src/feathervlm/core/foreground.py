"""Criteria of IVC-Prune: which positions the rotation favours, and which tokens have the values of the text.

Neither reads attention: the first knows nothing of the picture, the second nothing of positions. Every image is scored
by itself. They know nothing of how many tokens stay.
"""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.budget import check_fraction, kept, kept_tensor
from feathervlm.core.candidates import Candidates, ordered
from feathervlm.core.criteria import Criterion, choose
from feathervlm.core.images import Images, widened
from feathervlm.core.relevance import log_received
from feathervlm.core.signals import IsText, RotaryTable, Signal, Text, TextPart, Values, Wave


@dataclass(frozen=True)
class Rotary(Criterion):
    """Mean over the channels of the cosines, or the sines, that rotate a token (IVC-Prune, arXiv 2602.03060).

    Positions where the cosines are large together are rotated least (the real axis), those with large sines by a
    quarter turn: an implicit frame of visual coordinates. The score is the same for every prompt of one form.

    Args:
        of: "cos" or "sin".

    Raises:
        PruningError: if it is neither.
    """

    of: Wave = "cos"

    def __post_init__(self) -> None:
        choose(self.of, get_args(Wave), "of")

    def signals(self) -> tuple[Signal, ...]:
        """The rotary table."""
        return (RotaryTable(self.of),)

    def score(self, tokens: Candidates) -> Tensor:
        """The means: (batch, visual)."""
        return widened(tokens.signals.read(RotaryTable(self.of)), tokens.present).mean(-1).float()


@dataclass(frozen=True)
class ValueForeground(Criterion):
    """Attention that a token receives from text, and from what text looks at first, if values attend to values.

    G = log mean over queries and heads of softmax(V_query V_image^T / sqrt(dim)), the softmax over the tokens of one
    image (IVC-Prune, arXiv 2602.03060). The tokens with the highest G of the text are seeds; then text and seeds ask
    together, and that is the score.

    Args:
        seeds: fraction of an image's tokens that are seeds, at least one.
        which: text "behind" the last image, or "all" of the prompt, the template's own included.

    Raises:
        PruningError: if a parameter is out of range.
    """

    seeds: float = 0.01
    which: TextPart = "behind"

    def __post_init__(self) -> None:
        check_fraction(self.seeds, "seeds")
        choose(self.which, get_args(TextPart), "which")

    def signals(self) -> tuple[Signal, ...]:
        """Values of both, and which of them are text."""
        return Values(), Text(Values()), IsText(self.which)

    def score(self, tokens: Candidates) -> Tensor:
        """G of text and seeds: (batch, visual)."""
        images, read = Images(tokens), tokens.signals.read
        if not images.longest:
            return torch.zeros_like(tokens.present, dtype=torch.float32)
        values = images.take(read(Values())).transpose(1, 2)  # (images, heads, n, dim)
        values = widened(values, images.present[:, None].expand(values.shape[:3]))
        asks = read(IsText(self.which))
        text = read(Text(Values())).transpose(1, 2)
        text = widened(text, asks[:, None].expand(text.shape[:3]))
        text, asks = (part.repeat_interleave(tokens.geometry.images, 0) for part in (text, asks))
        first = self._received(text, asks, values, images.present)
        most = kept(self.seeds, images.longest)
        index = ordered([(~images.present).long(), -first])[:, :most]
        wanted = kept_tensor(self.seeds, images.present.sum(1))[:, None]
        seeds = values.gather(2, index[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[-1]))
        asks = torch.cat([asks, torch.arange(most, device=asks.device) < wanted], 1)
        return images.put(self._received(torch.cat([text, seeds.to(text.dtype)], 2), asks, values, images.present))

    @staticmethod
    def _received(queries: Tensor, asks: Tensor, values: Tensor, present: Tensor) -> Tensor:
        """Log means over queries (images, heads, m, dim) and heads: float32 (images, n), zeros where absent."""
        heads = values.shape[1]
        there = [mask.repeat_interleave(heads, 0) for mask in (asks, present)]
        received = log_received(queries.flatten(0, 1), there[0], values.flatten(0, 1), there[1])
        mean = received.view(-1, heads, received.shape[1]).logsumexp(1) - math.log(heads)
        return mean.float().masked_fill(~present, 0)
