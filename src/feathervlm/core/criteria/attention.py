"""Criteria that read attention maps.

A criterion reads signals and returns scores of shape (batch, visual), float32, higher = keep; a selector decides how
many tokens stay.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.budget import check_fraction
from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.image_rows import BLOCK
from feathervlm.core.signals import (
    Attention,
    EncoderAttention,
    EncoderSource,
    Features,
    Heads,
    IsText,
    RaterAttention,
    ScoreLayer,
    Signal,
    Support,
    Text,
    TextPart,
)
from feathervlm.core.tensor_ops import to_float64
from feathervlm.core.validation import check_bool, check_choice, check_encoder_layer


@dataclass(frozen=True)
class LastTokenAttention(Criterion):
    """Attention from the last prompt token to each visual token, mean over heads (FastV, arXiv 2403.06764).

    With `rope=False` the same q and k are compared without their rotation, which removes the long-term decay that
    favours tokens near the text, i.e. the bottom of the image (FEATHER, arXiv 2412.13180). Only the score is RoPE-free;
    the layer itself is unchanged.

    Args:
        rope: Whether q and k are rotated.
        over: Keys of the softmax: "visual", so that each head has the same weight, or "all".
        layer: "K-1", the last layer that saw all tokens, or "K", the layer about to run.
    """

    rope: bool = True
    over: Support = "visual"
    layer: ScoreLayer = "K-1"

    def __post_init__(self) -> None:
        check_choice(self.over, ("visual", "all"), "over")
        check_choice(self.layer, ("K-1", "K"), "layer")
        check_bool(self.rope, "rope")

    @property
    def signal(self) -> Attention:
        """The signal that this criterion returns."""
        return Attention(layer=self.layer, rope=self.rope, over=self.over)

    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,)

    def score(self, tokens: Candidates) -> Tensor:
        return tokens.signals.read(self.signal)


@dataclass(frozen=True)
class VisionAttention(Criterion):
    """Attention inside the vision encoder, from [CLS] where there is one (FasterVLM, arXiv 2412.01818).

    Args:
        layer: Layer of the encoder; -2 is the last but one, a float is a fraction of the depth.
        source: "cls", or "received", the mean over all queries; without a [CLS] token the two are the same.
        heads: "mean" over the heads, or "joint", one softmax of undivided queries and keys (LLaVA-PruMerge).
    """

    layer: int | float = -2
    source: EncoderSource = "cls"
    heads: Heads = "mean"

    def __post_init__(self) -> None:
        check_encoder_layer(self.layer)
        check_choice(self.source, ("cls", "received"), "source")
        check_choice(self.heads, ("mean", "joint"), "heads")

    @property
    def signal(self) -> EncoderAttention:
        """The signal that this criterion returns."""
        return EncoderAttention(self.layer, self.source, self.heads)

    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,)

    def score(self, tokens: Candidates) -> Tensor:
        return tokens.signals.read(self.signal)


@dataclass(frozen=True)
class TextRaterAttention(Criterion):
    """Attention from the words that the pictures are about, mean over words and heads (SparseVLM, arXiv 2410.04417).

    It is the attention of the last layer that saw all tokens, with RoPE and a softmax over all keys. With `min_decay`
    it is divided by what rotation alone does between two positions, which decreases with distance, so that a token gets
    at most 1 / `min_decay` times its attention (SparseVLM+). Heads are chosen after that.

    Args:
        text: Text that raters are chosen from: "all" of the prompt, or the "question" after its last image.
        heads: Share of the heads that count, rounded down and at least one: the heads that attend most to visual
            tokens.
        min_decay: Smallest divisor; None not to divide.

    Raises:
        PruningError: If a parameter is out of range.
    """

    text: TextPart = "question"
    heads: float = 1.0
    min_decay: float | None = None

    def __post_init__(self) -> None:
        check_choice(self.text, get_args(TextPart), "text")
        check_fraction(self.heads, "heads")
        if self.min_decay is not None:
            check_fraction(self.min_decay, "min_decay")

    @property
    def signal(self) -> RaterAttention:
        """The signal that this criterion returns."""
        return RaterAttention(text=self.text, heads=self.heads, min_decay=self.min_decay)

    def signals(self) -> tuple[Signal, ...]:
        features = Features("projected")
        return self.signal, features, Text(features), IsText(self.text)

    def score(self, tokens: Candidates) -> Tensor:
        return tokens.signals.read(self.signal)


def raters(visual: Tensor, exists: Tensor, text: Tensor, there: Tensor) -> Tensor:
    """Return the words that pictures are about: words more similar to visual tokens than the mean word.

    Every visual token has a softmax of its dot products with the text, and a word's score is the mean over visual
    tokens (SparseVLM, arXiv 2410.04417). Raters are the words above the mean score. If there is none, as with a single
    word, all words are raters.

    Args:
        visual: Embeddings of visual tokens that enter the language model, (batch, visual, dim).
        exists: bool tensor of shape (batch, visual).
        text: Embeddings of text tokens, (batch, texts, dim).
        there: bool tensor of shape (batch, texts), the words to choose from.

    Returns:
        Bool tensor of shape (batch, texts), a subset of `there`.
    """
    exists, there = exists.to(visual.device), there.to(visual.device)
    queries, words = to_float64(visual, exists), to_float64(text, there)
    scores, step = words.new_zeros(there.shape), max(1, BLOCK // max(there.numel(), 1))
    for start in range(0, queries.shape[1], step):
        rows = slice(start, start + step)
        logits = (queries[:, rows] @ words.transpose(1, 2)).masked_fill(~there[:, None], float("-inf"))
        scores = scores + (logits.softmax(-1) * exists[:, rows, None]).nan_to_num(0).sum(1)
    mean = scores.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    above = (scores.float() > mean.float()) & there  # rounded, equal words are equally far from their mean
    return torch.where(above.any(1, keepdim=True), above, there)
