"""Mergers by similarity: tokens go into the kept tokens of their image with the most similar vectors.

The vectors are a signal, features or keys of every token. Cosines are computed in blocks, so memory is bounded and no
table of all pairs exists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.errors import PruningError
from feathervlm.core.mergers.base import AdditiveMerger, Merger, group_sizes
from feathervlm.core.selectors.base import Selector
from feathervlm.core.signals import Signal, Vectors, check_vectors
from feathervlm.core.tensor_ops import unit_vectors
from feathervlm.core.validation import check_choice, check_int

BLOCK = 2**22
"""Number of cosines computed at a time."""
EXACT = 2**23
"""Number of steps of a cosine between 0 and 1."""


def similarities(vectors: Tensor, tokens: Candidates) -> Iterator[tuple[slice, Tensor]]:
    """Yield cosines of a block of tokens with all tokens, block by block: (rows, (batch, rows, visual)).

    Pairs across images and pairs with absent tokens are -inf.
    """
    # The last bits of a product depend on where its columns lie; rounded, equal vectors have equal cosines again.
    present, image = tokens.present, tokens.geometry.image
    unit = unit_vectors(vectors.to(present.device), present)
    batch, visual = present.shape
    step = max(BLOCK // max(batch * visual, 1), 1)
    for start in range(0, visual, step):
        rows = slice(start, start + step)
        cosine = (unit[:, rows] @ unit.transpose(1, 2)).mul_(EXACT).round_().div_(EXACT).float()
        same = (image[:, rows, None] == image[:, None]) & present[:, None]
        yield rows, cosine.masked_fill(~same, float("-inf"))


@dataclass(frozen=True)
class Nearest(Merger):
    """Each token goes into the most similar kept token of its image: the one with the highest cosine.

    Args:
        vectors: Signal that is compared.
        form: "mean" of the kept token and all tokens that go into it (VScan, arXiv 2505.22654), or "onto": the kept
            token plus the mean of the others, which is about twice as long (VisionZip, arXiv 2412.04467).
        exclude: Selector of kept tokens that take in no others, None if all kept tokens do.

    Raises:
        PruningError: If a parameter is of the wrong kind.
    """

    vectors: Vectors
    form: Literal["mean", "onto"] = "mean"
    exclude: Selector | None = None

    def __post_init__(self) -> None:
        check_vectors(self.vectors)
        check_choice(self.form, ("mean", "onto"), "form")
        if self.exclude is not None and not isinstance(self.exclude, Selector):
            raise PruningError(f"exclude={self.exclude!r} must be a selector such as Top(...), or None.")

    def signals(self) -> Sequence[Signal]:
        return (self.vectors, *(self.exclude.signals() if self.exclude is not None else ()))

    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        takes = kept if self.exclude is None else kept & ~self.exclude.select(tokens)
        targets = []
        for _, cosine in similarities(tokens.signals.read(self.vectors), tokens):
            cosine = cosine.masked_fill(~takes[:, None], float("-inf"))
            targets.append(torch.where(cosine.isfinite().any(-1), cosine.argmax(-1), -1))
        return torch.cat(targets, 1)

    def shares(self, tokens: Candidates, groups: Tensor) -> Tensor:
        if self.form == "mean":
            return super().shares(tokens, groups)
        index = torch.arange(groups.shape[1], device=groups.device)
        return torch.where(groups == index, 1.0, 1 / (group_sizes(groups) - 1))


@dataclass(frozen=True)
class Neighbors(AdditiveMerger):
    """Each kept token adds its nearest neighbours in the image: x_i + sum_j w_j x_j (PruMerge, arXiv 2403.15388).

    Kept tokens are neighbours as well, with their values before the merge. Reports name, for a token that several kept
    tokens took, the most similar of them.

    Args:
        vectors: Signal that is compared.
        weights: Criterion of w; the sum is not divided by the weights.
        count: Number of neighbours that each kept token adds.

    Raises:
        PruningError: If a parameter is of the wrong kind.
    """

    vectors: Vectors
    weights: Criterion
    count: int = 32

    def __post_init__(self) -> None:
        check_vectors(self.vectors)
        check_int(self.count, "count")
        check_criterion(self.weights, "weights")

    def signals(self) -> Sequence[Signal]:
        return (self.vectors, *self.weights.signals())

    def mix(self, tokens: Candidates, kept: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        index = torch.arange(kept.shape[1], device=kept.device)
        weights = torch.where(tokens.present, tokens.score(self.weights), 0)
        for rows, cosine in similarities(tokens.signals.read(self.vectors), tokens):
            cosine = cosine.masked_fill(index[rows, None] == index, float("-inf"))
            nearest = torch.sort(cosine, dim=-1, descending=True, stable=True).indices[..., : self.count]
            taken = torch.zeros_like(cosine, dtype=torch.bool).scatter(-1, nearest, True)
            taken = taken & cosine.isfinite() & kept[:, rows, None]
            yield rows, taken * weights[:, None], cosine.masked_fill(~taken, float("-inf"))
