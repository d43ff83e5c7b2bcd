"""Selections that hold beyond one forward where no cache remembers them. Compares prompts; knows nothing of pruning."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.engine.call import ModelCall


@dataclass(eq=False)
class ReusedSelection:
    """A selection that holds for a prompt and everything appended to it, where no cache remembers it."""

    tokens: Tensor
    source: tuple[Tensor, ...]
    kept: list[Tensor]

    def covers(self, call: ModelCall, source: tuple[Tensor, ...]) -> bool:
        """Whether the call is the same prompt, the same images and more text."""
        known, now = self.tokens, call.tokens
        if now.shape[0] != known.shape[0] or now.shape[1] <= known.shape[1] or now.dim() != known.dim():
            return False
        same = len(source) == len(self.source) and all(map(_equal, source, self.source))
        return same and torch.equal(now[:, : known.shape[1]], known)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))
