"""Selectors that read no score: every token, no token, and tokens that were chosen elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.budget import ImageTokens
from feathervlm.core.candidates import Candidates
from feathervlm.core.errors import PruningError
from feathervlm.core.selectors.base import Selector


@dataclass(frozen=True)
class KeepAll(Selector):
    """Keep every visual token, for stages that only move positions."""

    def select(self, tokens: Candidates) -> Tensor:
        return tokens.present

    def expected(self, image: ImageTokens) -> float:
        return image.current

    def size(self, image: ImageTokens) -> int | None:
        return int(image.current)


@dataclass(frozen=True)
class KeepNone(Selector):
    """Keep no visual token: the text-only control."""

    def select(self, tokens: Candidates) -> Tensor:
        return torch.zeros_like(tokens.present)

    def expected(self, image: ImageTokens) -> float:
        return 0.0

    def size(self, image: ImageTokens) -> int | None:
        return 0


@dataclass(frozen=True, eq=False)
class Given(Selector):
    """Keep tokens that were chosen elsewhere.

    Args:
        kept: bool tensor of shape (batch, visual), or one long tensor of original visual indices per sample, as in a
            report.
    """

    kept: Tensor | Sequence[Tensor]

    def select(self, tokens: Candidates) -> Tensor:
        device = tokens.present.device
        if isinstance(self.kept, Tensor):
            return self.kept.to(device) & tokens.present
        if len(self.kept) != len(tokens.present):
            raise PruningError(
                f"Tokens are given for {len(self.kept)} samples, but the batch has {len(tokens.present)}; give one "
                "tensor per sample."
            )
        mask = torch.zeros_like(tokens.present)
        for sample, indices in enumerate(self.kept):
            mask[sample, indices.to(device)] = True
        return mask & tokens.present

    def expected(self, image: ImageTokens) -> float:
        raise PruningError("Given tokens belong to one input, so their number cannot be planned; use another selector.")
