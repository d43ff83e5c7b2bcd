"""Mergers by similarity: tokens go into the kept tokens of their image that look most like them.

What is compared is a signal, features or keys of every token. Cosines are made in blocks, so memory is bounded and no
table of all pairs exists. Knows nothing of who selected.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.errors import PruningError
from feathervlm.core.mergers.base import AdditiveMerger, Merger, group_sizes
from feathervlm.core.selectors.base import Selector
from feathervlm.core.signals import EncoderKeys, Features, Signal
from feathervlm.core.validation import check_choice, check_int

Vectors = Features | EncoderKeys
"""The signals that are a vector for every token."""
BLOCK = 2**22
"""Cosines made at a time."""
EXACT = 2**23
"""Steps of a cosine between 0 and 1."""


def similarities(vectors: Tensor, tokens: Candidates) -> Iterator[tuple[slice, Tensor]]:
    """Cosines of a block of tokens with all tokens, block by block: (which, (batch, rows, visual)).

    Pairs across images, and with tokens that are not there, are -inf.
    """
    # The last bits of a product depend on where its columns lie; rounded, what float64 made of equals is a tie again.
    # MPS has no float64.
    present, image = tokens.present, tokens.geometry.image
    wide = torch.float32 if present.device.type == "mps" else torch.float64
    there = torch.where(present[..., None], vectors.to(present.device), 0).to(wide)
    unit = torch.nn.functional.normalize(there, dim=-1)
    batch, visual = present.shape
    step = max(BLOCK // max(batch * visual, 1), 1)
    for start in range(0, visual, step):
        rows = slice(start, start + step)
        cosine = (unit[:, rows] @ unit.transpose(1, 2)).mul_(EXACT).round_().div_(EXACT).float()
        same = (image[:, rows, None] == image[:, None]) & present[:, None]
        yield rows, cosine.masked_fill(~same, float("-inf"))


def check_vectors(by: object) -> None:
    """Raise `PruningError` unless `by` is a signal with a vector for every token."""
    if not isinstance(by, Features | EncoderKeys):
        raise PruningError(f"by={by!r} has no vectors to compare; give Features(...) or EncoderKeys(...).")


@dataclass(frozen=True)
class Nearest(Merger):
    """Each token goes into the most similar kept token of its image: the one with the highest cosine.

    Args:
        vectors: what is compared.
        form: "mean" of the kept token and all that went there (VScan, arXiv 2505.22654), or "onto" it: the kept token
            plus the mean of those that went there, which is about twice as long (VisionZip, arXiv 2412.04467).
        aside: a selector whose tokens take nothing in, None if all kept ones do.

    Raises:
        PruningError: if `by` is no vector, or another argument none of its kind.
    """

    vectors: Vectors
    form: Literal["mean", "onto"] = "mean"
    aside: Selector | None = None

    def __post_init__(self) -> None:
        check_vectors(self.vectors)
        check_choice(self.form, ("mean", "onto"), "form")
        if self.aside is not None and not isinstance(self.aside, Selector):
            raise PruningError(f"aside={self.aside!r} must be a selector such as Top(...), or None.")

    def signals(self) -> Sequence[Signal]:
        """The vectors, and what chooses the tokens that stand aside."""
        return (self.vectors, *(self.aside.signals() if self.aside is not None else ()))

    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        """The most similar kept token, of equals the first; -1 where there is none."""
        takes = kept if self.aside is None else kept & ~self.aside.select(tokens)
        found = []
        for _, cosine in similarities(tokens.signals.read(self.vectors), tokens):
            cosine = cosine.masked_fill(~takes[:, None], float("-inf"))
            found.append(torch.where(cosine.isfinite().any(-1), cosine.argmax(-1), -1))
        return torch.cat(found, 1)

    def shares(self, tokens: Candidates, groups: Tensor) -> Tensor:
        """Those of a mean, or 1 for the kept token and those of a mean for the others."""
        if self.form == "mean":
            return super().shares(tokens, groups)
        index = torch.arange(groups.shape[1], device=groups.device)
        return torch.where(groups == index, 1.0, 1 / (group_sizes(groups) - 1))


@dataclass(frozen=True)
class Neighbors(AdditiveMerger):
    """Each kept token takes up its nearest neighbours in the image: x_i + sum_j w_j x_j (PruMerge, arXiv 2403.15388).

    Kept tokens are neighbours, too, with what they were before. Of those that took a token, reports name the most
    similar one.

    Args:
        vectors: what is compared.
        weights: w, which the sum is not divided by.
        count: how many neighbours each takes up.

    Raises:
        PruningError: if an argument is none of its kind.
    """

    vectors: Vectors
    weights: Criterion
    count: int = 32

    def __post_init__(self) -> None:
        check_vectors(self.vectors)
        check_int(self.count, "count")
        if not isinstance(self.weights, Criterion):
            raise PruningError(f"weights={self.weights!r} must be a criterion such as VisionAttention().")

    def signals(self) -> Sequence[Signal]:
        """The vectors and what the weights read."""
        return (self.vectors, *self.weights.signals())

    def mix(self, tokens: Candidates, kept: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The weights of the nearest, and their cosines; see `AdditiveMerger`."""
        index = torch.arange(kept.shape[1], device=kept.device)
        weights = torch.where(tokens.present, tokens.score(self.weights), 0)
        for rows, cosine in similarities(tokens.signals.read(self.vectors), tokens):
            cosine = cosine.masked_fill(index[rows, None] == index, float("-inf"))
            nearest = torch.sort(cosine, dim=-1, descending=True, stable=True).indices[..., : self.count]
            taken = torch.zeros_like(cosine, dtype=torch.bool).scatter(-1, nearest, True)
            taken = taken & cosine.isfinite() & kept[:, rows, None]
            yield rows, taken * weights[:, None], cosine.masked_fill(~taken, float("-inf"))
