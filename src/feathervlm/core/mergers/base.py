"""What a merger is: it assigns the tokens that do not stay to kept tokens of their image, or to none.

The merged token keeps the position of the kept token.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates
from feathervlm.core.signals import Signal


class Merger(ABC):
    """Base of all mergers: a frozen dataclass whose fields are its parameters.

    A subclass says where tokens go (`targets`) and, unless it takes means, with which `shares`. For mergers in which a
    token may enter several others see `AdditiveMerger`.
    """

    def signals(self) -> Sequence[Signal]:
        """Return the signals that are read; the engine prepares their measurement before the forward."""
        return ()

    @abstractmethod
    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        """Return the kept token of its image that each token goes into.

        Args:
            tokens: The tokens that entered the stage.
            kept: bool tensor of shape (batch, visual), the tokens that stay.

        Returns:
            Long tensor of shape (batch, visual), -1 for a token that goes nowhere. Values of kept and absent tokens are
            ignored, and so are targets that are not kept or belong to another image.
        """

    def shares(self, tokens: Candidates, groups: Tensor) -> Tensor:
        """Return the weight of each token in its group, float32 (batch, visual); by default that of a mean."""
        return 1 / group_sizes(groups)

    def groups(self, tokens: Candidates, kept: Tensor) -> Tensor:
        """Return where every token is after the merge, long (batch, visual): its own index if kept, else its target, or
        -1.
        """
        goal = self.targets(tokens, kept)
        target, image = goal.clamp(min=0), tokens.geometry.image
        fits = (goal >= 0) & tokens.present & kept.gather(1, target) & (image.gather(1, target) == image)
        index = torch.arange(kept.shape[1], device=kept.device)
        return torch.where(kept, index, torch.where(fits, goal, -1))

    def combine(self, states: Tensor, groups: Tensor, tokens: Candidates) -> Tensor:
        """Return the states of the groups: sums of their members' states times shares, in float32 or wider.

        A group of one token is unchanged to the last bit. On CUDA the order of a sum, and so its last bit, is undefined
        unless `torch.use_deterministic_algorithms(True)` is set.

        Args:
            states: Tensor of shape (batch, visual, dim); any value for tokens that went nowhere.
            groups: long tensor of shape (batch, visual), the result of `groups`.
            tokens: The tokens that entered the stage.

        Returns:
            Tensor of shape (batch, visual, dim) in the dtype of `states`, with values at kept tokens and zeros
            elsewhere.
        """
        return _sums(states, self.shares(tokens, groups), groups)


class AdditiveMerger(Merger):
    """A merger whose kept tokens add parts of other tokens to themselves: x_i + sum_j w_ij x_j.

    Other kept tokens may be among the x_j, with their values before the merge. A token may enter several kept tokens,
    or none; reports name the kept token in which it has the largest weight.
    """

    @abstractmethod
    def mix(self, tokens: Candidates, kept: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield, block by block, what a block of tokens takes from all tokens: (rows, w, weight in reports).

        Both weights have the shape (batch, rows, visual). The latter is -inf where nothing is taken: by tokens that do
        not stay, from the token itself, and from absent tokens.
        """

    def targets(self, tokens: Candidates, kept: Tensor) -> Tensor:
        best = torch.full(kept.shape, float("-inf"), device=kept.device)
        target = torch.full_like(best, -1, dtype=torch.long)
        for rows, _, counts in self.mix(tokens, kept):
            value = counts.amax(1)
            target = torch.where(value > best, counts.argmax(1) + rows.start, target)
            best = best.maximum(value)
        return target

    def combine(self, states: Tensor, groups: Tensor, tokens: Candidates) -> Tensor:
        kept = groups == torch.arange(groups.shape[1], device=groups.device)
        device, wide = states.device, torch.promote_types(states.dtype, torch.float32)
        before = torch.where(tokens.present[..., None].to(device), states, 0).to(wide)
        after = [before[:, rows] + part.to(device, wide) @ before for rows, part, _ in self.mix(tokens, kept)]
        return torch.where(kept[..., None].to(device), torch.cat(after, 1), 0).to(states.dtype)


def group_means(states: Tensor, groups: Tensor) -> Tensor:
    """Return the mean state of every group, (batch, visual, dim), at the token that the group is named by; else zeros.

    A group of one token is unchanged to the last bit.

    Args:
        states: Tensor of shape (batch, visual, dim).
        groups: Token that each token's group is named by, long (batch, visual); -1 for none.
    """
    return _sums(states, 1 / group_sizes(groups), groups)


def _sums(states: Tensor, shares: Tensor, groups: Tensor) -> Tensor:
    batch, visual, dim = states.shape
    wide = torch.promote_types(states.dtype, torch.float32)
    parts = states.to(wide) * shares[..., None].to(states.device, wide)
    groups = groups.to(states.device)
    # Tokens that go nowhere are added to an extra row after each sample, which is cut off.
    row = _or_last(groups) + torch.arange(batch, device=groups.device)[:, None] * (visual + 1)
    sums = parts.new_zeros(batch * (visual + 1), dim).index_add(0, row.flatten(), parts.flatten(0, 1))
    return sums.view(batch, visual + 1, dim)[:, :visual].to(states.dtype)


def group_sizes(groups: Tensor) -> Tensor:
    """Return the size of the group of each token, long (batch, visual); any value where a token went nowhere."""
    row = _or_last(groups)
    counts = row.new_zeros(row.shape[0], row.shape[1] + 1)
    return counts.scatter_add_(1, row, torch.ones_like(row)).gather(1, row)


def _or_last(groups: Tensor) -> Tensor:
    """Replace the group "nowhere" (-1) by a number after all other groups."""
    return torch.where(groups < 0, groups.shape[1], groups)
