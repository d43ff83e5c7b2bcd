"""A criterion by the attention that values give each other (IVC-Prune)."""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.budget import check_fraction, kept, kept_tensor
from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.criteria.features import log_received
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.signals import IsText, Signal, Text, TextPart, Values
from feathervlm.core.tensor_ops import lexsort, to_float64
from feathervlm.core.validation import check_choice


@dataclass(frozen=True)
class ValueForeground(Criterion):
    """Attention that a token receives if values attend to values, from the text and from the tokens that the text finds
    first.

    G = log mean over queries and heads of softmax(V_query V_image^T / sqrt(dim)), the softmax over the tokens of one
    image (IVC-Prune, arXiv 2602.03060). The tokens with the highest G of the text are seeds; the score is G with text
    and seeds as queries.

    Args:
        seeds: Fraction of an image's tokens that are seeds, at least one token.
        text: The "question" after the last image, or "all" of the prompt, including the chat template.

    Raises:
        PruningError: If a parameter is out of range.
    """

    seeds: float = 0.01
    text: TextPart = "question"

    def __post_init__(self) -> None:
        check_fraction(self.seeds, "seeds")
        check_choice(self.text, get_args(TextPart), "text")

    def signals(self) -> tuple[Signal, ...]:
        return Values(), Text(Values()), IsText(self.text)

    def score(self, tokens: Candidates) -> Tensor:
        images, read = ImageRows(tokens), tokens.signals.read
        if not images.longest:
            return torch.zeros_like(tokens.present, dtype=torch.float32)
        values = images.take(read(Values())).transpose(1, 2)  # (images, heads, n, dim)
        values = to_float64(values, images.present[:, None].expand(values.shape[:3]))
        asks = read(IsText(self.text))
        text = read(Text(Values())).transpose(1, 2)
        text = to_float64(text, asks[:, None].expand(text.shape[:3]))
        text, asks = (part.repeat_interleave(tokens.geometry.images, 0) for part in (text, asks))
        first = self._received(text, asks, values, images.present)
        most = kept(self.seeds, images.longest)
        index = lexsort([(~images.present).long(), -first])[:, :most]
        count = kept_tensor(self.seeds, images.present.sum(1))[:, None]
        seeds = values.gather(2, index[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[-1]))
        asks = torch.cat([asks, torch.arange(most, device=asks.device) < count], 1)
        return images.put(self._received(torch.cat([text, seeds.to(text.dtype)], 2), asks, values, images.present))

    @staticmethod
    def _received(queries: Tensor, asks: Tensor, values: Tensor, present: Tensor) -> Tensor:
        """Compute log means over queries (images, heads, m, dim) and heads: float32 (images, n), zeros where absent."""
        heads = values.shape[1]
        there = [mask.repeat_interleave(heads, 0) for mask in (asks, present)]
        received = log_received(queries.flatten(0, 1), there[0], values.flatten(0, 1), there[1])
        mean = received.view(-1, heads, received.shape[1]).logsumexp(1) - math.log(heads)
        return mean.float().masked_fill(~present, 0)
