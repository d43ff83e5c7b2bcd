"""Criteria phi: what a token is worth. Scores are (batch, visual) float32, higher = keep.

A criterion reads signals and says nothing about how many tokens stay; that is the selector's part.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates
from feathervlm.core.errors import PruningError
from feathervlm.core.images import Images
from feathervlm.core.signals import (
    Attention,
    EncoderAttention,
    EncoderSource,
    Features,
    FeatureSource,
    Heads,
    ScoreLayer,
    Signal,
    Support,
)


class Criterion(ABC):
    """Base of all criteria: a frozen dataclass whose fields are its parameters."""

    def signals(self) -> tuple[Signal, ...]:
        """The signals that `score` reads, so that the engine can arm itself in time."""
        return ()

    @abstractmethod
    def score(self, tokens: Candidates) -> Tensor:
        """Scores (batch, visual), higher = keep; absent tokens may hold anything."""


def choose(value: object, options: tuple[str, ...], name: str) -> None:
    """Raise `PruningError` unless `value` is one of `options`."""
    if value not in options:
        raise PruningError(f"{name}={value!r} is not one of {', '.join(options)}.")


def check_whole(value: object, name: str, least: int = 1) -> None:
    """Raise `PruningError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PruningError(f"{name}={value!r} must be a whole number of at least {least}.")


def check_encoder_layer(layer: object, name: str = "layer") -> None:
    """Raise `PruningError` unless `layer` is a whole number (-1 is the last) or a fraction of the depth in (0, 1)."""
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    if not whole and not (isinstance(layer, float) and 0 < layer < 1):
        raise PruningError(
            f"{name}={layer!r} of a vision encoder must be a whole number, such as -2, or a fraction of its depth."
        )


def encoder_layer_index(layer: int | float, depth: int) -> int:
    """The layer of an encoder that a fraction of its depth means, rounded to the nearest; others as they are.

    >>> encoder_layer_index(1 / 12, 24), encoder_layer_index(-2, 24)
    (2, -2)
    """
    return min(int(layer * depth + 0.5), depth - 1) if isinstance(layer, float) else layer


def check_seed(seed: object) -> None:
    """Raise `PruningError` unless `seed` is one."""
    check_whole(seed, "seed", least=0)
    if isinstance(seed, int) and seed >= 2**63:
        raise PruningError(f"seed={seed} is too large; seeds are below 2**63.")


def draws(like: Tensor, seed: int) -> Tensor:
    """Random numbers in [0, 1) for tokens (batch, visual), the same for every sample and in any batch."""
    # Drawn one by one in order, so a wider batch extends the sequence instead of changing it.
    numbers = torch.rand(like.shape[1], generator=torch.Generator().manual_seed(seed))
    return numbers.to(like.device).expand(like.shape)


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
        choose(self.over, ("visual", "all"), "over")
        choose(self.layer, ("K-1", "K"), "layer")
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
class KNNDensity(Criterion):
    """DPC-KNN: local density times distance to the nearest denser token, within each image (arXiv 2412.13180, 2.1).

    With D_ij = |z_i - z_j| / sqrt(dim): rho_i = exp(-mean over the k nearest, itself included, of D_ij^2);
    delta_i = min of D_ij over denser j, or for the densest token the largest D of the image; score = rho * delta.
    The authors break ties of rho with random noise; here the lower index counts as denser, which needs no seed.

    Args:
        neighbors: k, itself included.
        features: "vision", encoder patch features before the projector, "projected", the embeddings that enter the
            language model, or "hidden", the states that enter the stage's layer; without the first where a layout is
            given by hand.
    """

    neighbors: int = 5
    features: FeatureSource = "vision"

    def __post_init__(self) -> None:
        choose(self.features, get_args(FeatureSource), "features")
        check_whole(self.neighbors, "neighbors")

    def signals(self) -> tuple[Signal, ...]:
        """Feature vectors."""
        return (Features(self.features),)

    def score(self, tokens: Candidates) -> Tensor:
        """rho * delta: (batch, visual)."""
        images = Images(tokens)  # pairs across images mean nothing, and the distance matrix is the memory that counts
        features = images.take(tokens.signals.read(Features(self.features)).float())
        return images.put(density_peaks(features, images.present, self.neighbors))


def density_peaks(features: Tensor, members: Tensor, neighbors: int | Tensor) -> Tensor:
    """rho * delta of the `members` (batch, visual) among themselves, from features (batch, visual, dim).

    Args:
        features: absent tokens may hold anything.
        members: bool.
        neighbors: k, itself included, or one for each row, long (batch,).
    """
    if not members.shape[1]:
        return features.new_zeros(members.shape)
    pair = members[:, :, None] & members[:, None, :]  # (batch, visual, visual)
    distance = (distances(features) / features.shape[-1] ** 0.5).masked_fill(~pair, float("inf"))
    return peaks(distance, neighbors)


def peaks(distance: Tensor, neighbors: int | Tensor) -> Tensor:
    """rho * delta, (batch, n), from the distance of each token to all others; infinite where they are no neighbours.

    Args:
        distance: (batch, n, n).
        neighbors: k, itself included, or one for each row, long (batch,).
    """
    width = distance.shape[-1]
    most = width if isinstance(neighbors, Tensor) else min(neighbors, width)
    nearest = distance.topk(most, dim=-1, largest=False).values
    if isinstance(neighbors, Tensor):
        beyond = torch.arange(width, device=distance.device) >= neighbors[:, None]
        nearest = nearest.masked_fill(beyond[:, None], float("inf"))
    found = nearest.isfinite()
    sparsity = nearest.square().masked_fill(~found, 0).sum(-1) / found.sum(-1).clamp(min=1)
    index = torch.arange(distance.shape[1], device=distance.device)
    # Compare exponents, not exponentials, which underflow to equal zeros far from everything.
    denser = (sparsity[:, None, :] < sparsity[:, :, None]) | (
        (sparsity[:, None, :] == sparsity[:, :, None]) & (index[None, :] < index[:, None])
    )
    to_denser = distance.masked_fill(~denser, float("inf")).amin(-1)
    widest = distance.masked_fill(~distance.isfinite(), 0).amax((1, 2))
    delta = torch.where(to_denser.isfinite(), to_denser, widest[:, None])
    scores: Tensor = (-sparsity).exp() * delta
    return scores


def distances(features: Tensor) -> Tensor:
    """Euclidean distances of all pairs, (batch, visual, visual): each from its own differences, so that it is exact."""
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")


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
        choose(self.source, ("cls", "received"), "source")
        choose(self.heads, ("mean", "joint"), "heads")

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
class RandomScore(Criterion):
    """Uniform random scores: the control that any criterion has to beat.

    The score of a token depends on the seed and on its place among the visual tokens alone, so it is the same in
    any batch and at any stage.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def score(self, tokens: Candidates) -> Tensor:
        """Numbers in [0, 1): (batch, visual)."""
        return draws(tokens.present, self.seed)
