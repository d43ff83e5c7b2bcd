"""Criteria phi: what a token is worth. Scores are (batch, visual) float32, higher = keep.

A criterion reads signals and says nothing about how many tokens stay; that is the selector's part.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.budget import check_fraction
from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.errors import PruningError
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
from feathervlm.core.validation import check_choice, check_encoder_layer


@dataclass(frozen=True)
class LastTokenAttention(Criterion):
    """Attention from the last prompt token to each visual token, mean over heads (FastV, arXiv 2403.06764).

    With `rope=False` the same q and k are compared without their rotation, which removes the long-term decay that
    favours tokens near the text, i.e. the bottom of the image (FEATHER, arXiv 2412.13180). Only the score is
    RoPE-free; the layer itself runs as always.

    Args:
        rope: rotate q and k, or not.
        over: softmax over the visual keys (each head then counts the same) or over all keys.
        layer: score with layer "K-1", the last that saw all tokens, or with layer "K", about to run.
    """

    rope: bool = True
    over: Support = "visual"
    layer: ScoreLayer = "K-1"

    def __post_init__(self) -> None:
        check_choice(self.over, ("visual", "all"), "over")
        check_choice(self.layer, ("K-1", "K"), "layer")
        if not isinstance(self.rope, bool):
            raise PruningError(f"rope={self.rope!r} is neither true nor false.")

    @property
    def signal(self) -> Attention:
        """The one signal that this criterion is."""
        return Attention(layer=self.layer, rope=self.rope, over=self.over)

    def signals(self) -> tuple[Signal, ...]:
        """One attention row."""
        return (self.signal,)

    def score(self, tokens: Candidates) -> Tensor:
        """The attention row itself: (batch, visual)."""
        return tokens.signals.read(self.signal)


@dataclass(frozen=True)
class VisionAttention(Criterion):
    """Attention inside the vision encoder, from [CLS] where there is one (FasterVLM, arXiv 2412.01818).

    Args:
        layer: of the encoder; -2 is the last but one, a float a fraction of the depth.
        source: "cls", or what a patch has "received" from all; without a [CLS] token the two are the same.
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
        """The one signal that this criterion is."""
        return EncoderAttention(self.layer, self.source, self.heads)

    def signals(self) -> tuple[Signal, ...]:
        """The encoder's attention."""
        return (self.signal,)

    def score(self, tokens: Candidates) -> Tensor:
        """The attention: (batch, visual)."""
        return tokens.signals.read(self.signal)


@dataclass(frozen=True)
class TextRaterAttention(Criterion):
    """Attention from the words that the pictures are about, mean over these and heads (SparseVLM, arXiv 2410.04417).

    That of the last layer that saw all tokens, with RoPE, softmax over all keys. With `min_decay` it is divided by what
    rotation alone does between two places, which falls off with distance, and a token gets at most 1 / `min_decay` times
    its attention (SparseVLM+). Heads are chosen after that.

    Args:
        text: text that raters are chosen from: of "all" the prompt, or "behind" its last image.
        heads: share of the heads that count, rounded down and at least one: those that look most at visual tokens.
        min_decay: divide by the cosine of rotated vectors of ones, where it is smaller by this; None not to divide.

    Raises:
        PruningError: if a parameter is out of range.
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
        """The attention."""
        return RaterAttention(text=self.text, heads=self.heads, min_decay=self.min_decay)

    def signals(self) -> tuple[Signal, ...]:
        """The attention, and what tells the raters."""
        features = Features("projected")
        return self.signal, features, Text(features), IsText(self.text)

    def score(self, tokens: Candidates) -> Tensor:
        """The attention itself: (batch, visual)."""
        return tokens.signals.read(self.signal)


def raters(visual: Tensor, exists: Tensor, text: Tensor, there: Tensor) -> Tensor:
    """The words that pictures are about: those that visual tokens find more than the mean word (arXiv 2410.04417).

    Every visual token has a softmax of its dot products with the text, of which every word takes the mean. If no word
    is above the mean of these, as with one word, all are raters.

    Args:
        visual: (batch, visual, dim), embeddings that enter the language model.
        exists: bool (batch, visual).
        text: (batch, texts, dim), likewise.
        there: bool (batch, texts), the words in question.

    Returns:
        bool (batch, texts), a subset of `there`.
    """
    exists, there = exists.to(visual.device), there.to(visual.device)
    queries, words = to_float64(visual, exists), to_float64(text, there)
    found, step = words.new_zeros(there.shape), max(1, BLOCK // max(there.numel(), 1))
    for start in range(0, queries.shape[1], step):
        rows = slice(start, start + step)
        logits = (queries[:, rows] @ words.transpose(1, 2)).masked_fill(~there[:, None], float("-inf"))
        found = found + (logits.softmax(-1) * exists[:, rows, None]).nan_to_num(0).sum(1)
    mean = found.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    above = (found.float() > mean.float()) & there  # rounded, equal words are equally far from their mean
    return torch.where(above.any(1, keepdim=True), above, there)
