"""Groups of tokens that wait, whose means run in their place (SwiftVLM, arXiv 2602.03134)."""

import torch
from torch import Tensor

from feathervlm.core.budget import Keep, kept_tensor
from feathervlm.core.candidates import Candidates
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.mergers.base import group_means
from feathervlm.core.signals import Features
from feathervlm.core.tensor_ops import density_peaks, first_n, stable_cosines, unit_vectors

STATES = Features("hidden")
"""What is compared: the states that enter the stage's layer."""


def wait_groups(tokens: Candidates, left: Tensor, count: Keep) -> Tensor:
    """Return the token in whose row the mean of each token's group runs.

    Groups form around density peaks of the directions of the states, within an image; a token belongs to the peak with
    the highest cosine. The mean runs in the row of the member with the highest cosine to it. Of equal ones the lower
    index wins.

    Args:
        tokens: The candidates of the stage.
        left: bool tensor of shape (batch, visual), the tokens that wait.
        count: Number of groups of an image, or fraction of its original tokens.

    Returns:
        Long tensor of shape (batch, visual): the own index for tokens that run on, -1 for absent ones.
    """
    index = torch.arange(left.shape[1], device=left.device).expand_as(left)
    own = torch.where(tokens.present, index, -1)
    images = ImageRows(tokens)
    if not images.longest:
        return own
    states = tokens.signals.read(STATES).to(left.device).float()
    unit = images.take(unit_vectors(states, tokens.present))
    members, places = images.mark(left), images.take(index)
    groups = kept_tensor(count, tokens.original()).flatten()[:, None].minimum(members.sum(1, keepdim=True))[:, 0]
    peaks = first_n([-density_peaks(unit, members, groups).float()], members, groups)
    cosine = stable_cosines(unit, unit).masked_fill(~peaks[:, None], float("-inf"))
    group = torch.where(members, places.gather(1, cosine.argmax(-1)), -1)
    group = torch.where(left, images.put(group), own)
    means = group_means(states, group)
    own_mean = means.gather(1, group.clamp(min=0)[..., None].expand_as(means))
    pair = [unit_vectors(vectors, tokens.present) for vectors in (states, own_mean)]
    return _nearest_member(group, left, (pair[0] * pair[1]).sum(-1).float())


def _nearest_member(group: Tensor, left: Tensor, nearness: Tensor) -> Tensor:
    """Return the groups, named by the member of each with the highest nearness in place of their peak."""
    visual = group.shape[1]
    row = torch.where(left, group, visual)
    best = nearness.new_full((len(group), visual + 1), float("-inf"))
    best = best.scatter_reduce(1, row, nearness, "amax")
    index = torch.arange(visual, device=group.device).expand_as(group)
    candidate = torch.where(left & (nearness == best.gather(1, row)), index, visual)
    first = torch.full_like(row, visual, dtype=torch.long)
    first = torch.nn.functional.pad(first, (0, 1), value=visual).scatter_reduce(1, row, candidate, "amin")
    return torch.where(left, first.gather(1, row), group)
