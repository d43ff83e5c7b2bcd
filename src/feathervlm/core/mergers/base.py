"""Mergers: what becomes of the tokens that do not stay. Each goes into a kept token of its image, or nowhere.

A merger says where tokens go and with which share they enter there; it knows neither layers nor who selected. The
merged token keeps the position of the token that it went into.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates
from feathervlm.core.signals import Signal


class Merger(ABC):
    """Base of all mergers: a frozen dataclass whose fields are its parameters.

    A subclass says where tokens go (`targets`) and, unless it takes means, with which `shares`. One in which a token
    may enter several others is a `AdditiveMerger`.
    """

    def signals(self) -> Sequence[Signal]:
        """The signals that are read, so that the engine can arm itself in time."""
        return ()

    @abstractmethod
    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        """The kept token of its image that each token goes into.

        Args:
            tokens: that entered the stage.
            kept: bool (batch, visual), those that stay.

        Returns:
            long (batch, visual), -1 for a token that goes nowhere. What it says of tokens that stay or are gone already
            does not count, nor does a target that is not kept or of another image.
        """

    def shares(self, tokens: Candidates, groups: Tensor) -> Tensor:
        """The weight with which each token enters its group, float32 (batch, visual); by default that of a mean."""
        return 1 / group_sizes(groups)

    def groups(self, tokens: Candidates, kept: Tensor) -> Tensor:
        """Where every token is now, long (batch, visual): itself if kept, -1 if it went nowhere or was gone before."""
        wanted = self.targets(tokens, kept)
        target, image = wanted.clamp(min=0), tokens.geometry.image
        fits = (wanted >= 0) & tokens.present & kept.gather(1, target) & (image.gather(1, target) == image)
        index = torch.arange(kept.shape[1], device=kept.device)
        return torch.where(kept, index, torch.where(fits, wanted, -1))

    def combine(self, states: Tensor, groups: Tensor, tokens: Candidates) -> Tensor:
        """States of the groups, from those of their members: the sums of their shares, in float32 or wider.

        A group of one is left as it is to the last bit. On CUDA the order of a sum, and so its last bit, is open unless
        `torch.use_deterministic_algorithms(True)`.

        Args:
            states: (batch, visual, dim); anything for tokens that went nowhere.
            groups: long (batch, visual), as `groups` gives them.
            tokens: that entered the stage.

        Returns:
            (batch, visual, dim) in the type of `states`, at the places of kept tokens; zeros elsewhere.
        """
        batch, visual, dim = states.shape
        wide = torch.promote_types(states.dtype, torch.float32)
        parts = states.to(wide) * self.shares(tokens, groups)[..., None].to(states.device, wide)
        groups = groups.to(states.device)
        # Tokens that go nowhere gather in a row of their own behind each sample, which is cut off.
        row = _or_last(groups) + torch.arange(batch, device=groups.device)[:, None] * (visual + 1)
        sums = parts.new_zeros(batch * (visual + 1), dim).index_add(0, row.flatten(), parts.flatten(0, 1))
        return sums.view(batch, visual + 1, dim)[:, :visual].to(states.dtype)


class AdditiveMerger(Merger):
    """A merger whose kept tokens add parts of others to themselves: x_i + sum_j w_ij x_j.

    Other kept tokens may be among them, with what they were before. A token may enter several kept ones, or none;
    reports name the one of those that took it where it counts most.
    """

    @abstractmethod
    def mix(self, tokens: Candidates, kept: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """For a block of tokens what they take of all, block by block: (which, w, weight in reports).

        Both are (batch, rows, visual), the latter -inf where nothing is taken: by tokens that do not stay, of the
        token itself, of tokens that are gone.
        """

    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        """The kept token where each counts most, of equals the first; -1 where none takes it."""
        best = torch.full(kept.shape, float("-inf"), device=kept.device)
        found = torch.full_like(best, -1, dtype=torch.long)
        for rows, _, counts in self.mix(tokens, kept):
            value = counts.amax(1)
            found = torch.where(value > best, counts.argmax(1) + rows.start, found)
            best = best.maximum(value)
        return found

    def combine(self, states: Tensor, groups: Tensor, tokens: Candidates) -> Tensor:
        """Kept tokens with what they take: (batch, visual, dim), zeros elsewhere."""
        kept = groups == torch.arange(groups.shape[1], device=groups.device)
        device, wide = states.device, torch.promote_types(states.dtype, torch.float32)
        before = torch.where(tokens.present[..., None].to(device), states, 0).to(wide)
        after = [before[:, rows] + part.to(device, wide) @ before for rows, part, _ in self.mix(tokens, kept)]
        return torch.where(kept[..., None].to(device), torch.cat(after, 1), 0).to(states.dtype)


def group_sizes(groups: Tensor) -> Tensor:
    """How many tokens share the group of each, long (batch, visual); meaningless where a token went nowhere."""
    row = _or_last(groups)
    counts = row.new_zeros(row.shape[0], row.shape[1] + 1)
    return counts.scatter_add_(1, row, torch.ones_like(row)).gather(1, row)


def _or_last(groups: Tensor) -> Tensor:
    """The groups, with a number behind all others for "nowhere"."""
    return torch.where(groups < 0, groups.shape[1], groups)
