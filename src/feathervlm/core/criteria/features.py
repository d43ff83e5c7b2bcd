"""Criteria that compare vectors instead of reading attention maps.

They compare hidden states or embeddings without learned queries and keys and without rotation, so position has no
influence. Every image is scored separately.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.image_rows import BLOCK, ImageRows
from feathervlm.core.signals import Features, FeatureSource, IsText, Keys, ScoreLayer, Signal, Text, TextPart
from feathervlm.core.tensor_ops import density_peaks, to_float64
from feathervlm.core.validation import check_bool, check_choice, check_int


@dataclass(frozen=True)
class KNNDensity(Criterion):
    """DPC-KNN: local density times distance to the nearest denser token, within each image (arXiv 2412.13180, 2.1).

    With D_ij = |z_i - z_j| / sqrt(dim): rho_i = exp(-mean over the k nearest, itself included, of D_ij^2); delta_i =
    min of D_ij over denser j, or for the densest token the largest D of the image; score = rho * delta. The authors
    break ties of rho with random noise; here the lower index counts as denser, which needs no seed.

    Args:
        neighbors: k, the token itself included.
        features: "vision", encoder patch features before the projector; "projected", the embeddings that enter the
            language model; or "hidden", the states that enter the stage's layer. "vision" is not available with a
            layout made by hand.
    """

    neighbors: int = 5
    features: FeatureSource = "vision"

    def __post_init__(self) -> None:
        check_choice(self.features, get_args(FeatureSource), "features")
        check_int(self.neighbors, "neighbors")

    def signals(self) -> tuple[Signal, ...]:
        return (Features(self.features),)

    def score(self, tokens: Candidates) -> Tensor:
        images = ImageRows(
            tokens
        )  # pairs across images mean nothing, and the distance matrix is the memory that counts
        features = images.take(tokens.signals.read(Features(self.features)).float())
        return images.put(density_peaks(features, images.present, self.neighbors))


@dataclass(frozen=True)
class KeyNorm(Criterion):
    """Sum of |k| over the key of a token, all heads side by side (DART, arXiv 2502.11494).

    Args:
        rope: Whether keys are rotated as in the cache, where |k| depends on the position, or as projected.
        layer: "K-1", the last layer that saw all tokens, or "K", the layer about to run.

    Raises:
        PruningError: If a parameter is out of range.
    """

    rope: bool = False
    layer: ScoreLayer = "K-1"

    def __post_init__(self) -> None:
        check_choice(self.layer, get_args(ScoreLayer), "layer")
        check_bool(self.rope, "rope")

    @property
    def signal(self) -> Keys:
        """The signal that is read."""
        return Keys(self.layer, self.rope)

    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,)

    def score(self, tokens: Candidates) -> Tensor:
        return to_float64(tokens.signals.read(self.signal), tokens.present).abs().sum(-1).float()


@dataclass(frozen=True)
class TextSimilarity(Criterion):
    """Cosine of a token's feature to the mean feature of the text (as in OpenVINO's CDPruner).

    Args:
        features: "projected", the embeddings that enter the language model, or "hidden", the states at the stage's
            layer.
        text: "all" of the prompt, including the chat template, or the "question" after its last image.

    Raises:
        PruningError: If a parameter is out of range.
    """

    features: FeatureSource = "projected"
    text: TextPart = "all"

    def __post_init__(self) -> None:
        check_choice(self.features, ("projected", "hidden"), "features")
        check_choice(self.text, get_args(TextPart), "text")

    def signals(self) -> tuple[Signal, ...]:
        return Features(self.features), Text(Features(self.features)), IsText(self.text)

    def score(self, tokens: Candidates) -> Tensor:
        images, read = ImageRows(tokens), tokens.signals.read
        mean = to_float64(read(Text(Features(self.features))), read(IsText(self.text))).sum(
            1
        )  # its length is no matter
        mean = torch.nn.functional.normalize(mean, dim=-1).repeat_interleave(tokens.geometry.images, 0)
        return images.put((images.directions(self.features) @ mean[..., None])[..., 0].float())


@dataclass(frozen=True)
class FeatureAttention(Criterion):
    """Attention that a token receives if features attend as they are: log column means of softmax(Q F^T / sqrt(dim)).

    Each query has a softmax over the tokens of an image, and a token's score is the mean over all queries (STAR, arXiv
    2505.12359). A token compared with itself counts, as in the formula. The mean over a row, which the paper seems to
    write, would be the same for every token. Long vectors let a few tokens take nearly all attention; the logarithm
    keeps the others apart, which otherwise would underflow to zero and be ranked by index.

    Args:
        of: Queries: the tokens of the "image" themselves, or the "text".
        features: "vision", "projected" or "hidden"; text has no "vision" features.
        text: "all" of the prompt, including the chat template, or the "question" after its last image.

    Raises:
        PruningError: If a parameter is out of range, or text has no such features.
    """

    of: Literal["image", "text"] = "image"
    features: FeatureSource = "projected"
    text: TextPart = "all"

    def __post_init__(self) -> None:
        check_choice(self.of, ("image", "text"), "of")
        check_choice(self.features, get_args(FeatureSource), "features")
        check_choice(self.text, get_args(TextPart), "text")
        if self.of == "text":
            Text(Features(self.features))  # checks that text has these features

    def signals(self) -> tuple[Signal, ...]:
        features = Features(self.features)
        return (features,) if self.of == "image" else (features, Text(features), IsText(self.text))

    def score(self, tokens: Candidates) -> Tensor:
        images, read = ImageRows(tokens), tokens.signals.read
        if not images.longest:
            return torch.zeros_like(tokens.present, dtype=torch.float32)
        keys = images.vectors(self.features)
        if self.of == "image":
            received = log_received(keys, images.present, keys, images.present)
        else:
            queries, there = read(Text(Features(self.features))), read(IsText(self.text))
            received = log_received(queries, there, keys, images.present, tokens.geometry.images)
        return images.put(received.float().masked_fill(~images.present, 0))


def log_received(queries: Tensor, asks: Tensor, keys: Tensor, present: Tensor, repeats: int = 1) -> Tensor:
    """Compute the logarithm of the attention that every key receives: column means of softmax(Q K^T / sqrt(dim)).

    Args:
        queries: Tensor of shape (rows / repeats, m, dim); any value where `asks` is False.
        asks: bool tensor of shape (rows / repeats, m), the queries that exist.
        keys: Tensor of shape (rows, n, dim), zeros where absent.
        present: bool tensor of shape (rows, n), the keys of each query's softmax.
        repeats: Number of consecutive rows of keys that share the same queries.

    Returns:
        Tensor of shape (rows, n), in the dtype of `keys`; any value where a key is absent.
    """
    total, step = keys.new_full(keys.shape[:2], float("-inf")), max(1, BLOCK // keys.shape[:2].numel())
    for start in range(0, queries.shape[1], step):
        rows = slice(start, start + step)
        some = to_float64(queries[:, rows], asks[:, rows]).repeat_interleave(repeats, 0)
        # Rounded, equal tokens have equal logits wherever they lie, and so equal scores.
        logits = (some @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).float().to(keys.dtype)
        weights = logits.masked_fill(~present[:, None], float("-inf")).log_softmax(-1)
        there = asks[:, rows].repeat_interleave(repeats, 0)
        total = total.logaddexp(weights.masked_fill(~there[..., None], float("-inf")).logsumexp(1))
    return total - asks.sum(1, keepdim=True).clamp(min=1).repeat_interleave(repeats, 0).log()
