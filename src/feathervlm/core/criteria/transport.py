"""How much of what comes out of a layer a token's state supplies, by optimal transport (TopV, arXiv 2503.18278).

States of an image that enter a layer are sources, what its norm behind the attention gives out are targets, and the
plan that moves the one to the other is found by a few Sinkhorn steps. No attention is read. Knows no method.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.errors import PruningError
from feathervlm.core.image_rows import BLOCK, ImageRows
from feathervlm.core.signals import LayerStates, Signal
from feathervlm.core.tensor_ops import to_float64
from feathervlm.core.validation import check_int

STATES = LayerStates("entry"), LayerStates("middle")


@dataclass(frozen=True)
class OptimalTransport(Criterion):
    """What each token sends in an entropic transport plan between uniform marginals, times the number of tokens.

    Costs are the distance of states |s_i - t_j| and the distance of cells 1 - exp(-d_ij^2 / (2 sigma^2)), each brought
    to [0, 1] within the image and weighted. Each iteration scales rows, then columns: columns sum exactly to their
    marginal, and what a row sends is still free. After a last step on rows it would be the same for every token. For
    the same reason a cost that depends on the source alone cannot count, and there is none. Cells of different planes
    or frames are infinitely far apart.

    Args:
        feature: weight of the distance of states.
        spatial: weight of the distance of cells.
        sigma: in cells.
        epsilon: weight of the entropy.
        iterations: of Sinkhorn.

    Raises:
        PruningError: if a parameter is out of range.
    """

    feature: float = 1.0
    spatial: float = 1.0
    sigma: float = 10.0
    epsilon: float = 0.1
    iterations: int = 3

    def __post_init__(self) -> None:
        for name, least in (("feature", 0.0), ("spatial", 0.0), ("sigma", 1e-3), ("epsilon", 1e-3)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
                raise PruningError(f"{name}={value!r} must be a number of at least {least:g}.")
        if self.feature + self.spatial > 500 * self.epsilon:  # exp(-cost / epsilon) of float64 ends there
            raise PruningError(
                f"epsilon={self.epsilon!r} is too small for costs up to {self.feature + self.spatial:g}."
            )
        check_int(self.iterations, "iterations")

    def signals(self) -> tuple[Signal, ...]:
        """States before and inside the last layer."""
        return STATES

    def score(self, tokens: Candidates) -> Tensor:
        """Row sums of the plan: (batch, visual)."""
        images = ImageRows(tokens)
        if not images.longest:
            return torch.zeros_like(tokens.present, dtype=torch.float32)
        sources, targets = (to_float64(images.take(tokens.signals.read(states)), images.present) for states in STATES)
        cells = self._cells(images)
        # All pairs are compared, so some images at a time.
        step, sent = max(1, BLOCK // images.longest**2), []
        for start in range(0, len(sources), step):
            some = slice(start, start + step)
            cost = self._cost(sources[some], targets[some], cells[some], images.present[some])
            sent.append(sent_by(cost, images.present[some], self.epsilon, self.iterations))
        return images.put(torch.cat(sent))

    def _cells(self, images: ImageRows) -> Tensor:
        """(plane, frame, row, column) of every token: long (images, longest, 4)."""
        place = images.tokens.geometry
        return images.take(torch.stack([place.plane, place.frame, place.row, place.col], -1))

    def _cost(self, sources: Tensor, targets: Tensor, cells: Tensor, present: Tensor) -> Tensor:
        """(images, n, n)."""
        pairs = present[:, :, None] & present[:, None]
        square = sources.square().sum(-1)[:, :, None] + targets.square().sum(-1)[:, None]
        distance = (square - 2 * sources @ targets.transpose(1, 2)).clamp(min=0).sqrt().float()
        apart = cells[:, :, None] - cells[:, None]
        near = torch.exp(-apart[..., 2:].square().sum(-1) / (2 * self.sigma**2)) * (apart[..., :2] == 0).all(-1)
        cost = self.feature * spread(distance, pairs) + self.spatial * spread(1 - near, pairs)
        return cost.to(sources.dtype)


def spread(values: Tensor, which: Tensor) -> Tensor:
    """Values (images, n, n) brought to [0, 1] over bool `which` of every image; zeros if these are all the same."""
    low = values.masked_fill(~which, float("inf")).amin((1, 2), keepdim=True)
    high = values.masked_fill(~which, float("-inf")).amax((1, 2), keepdim=True)
    return torch.where(which & (high > low), (values - low) / (high - low), 0.0)


def sent_by(cost: Tensor, present: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Row sums of the plan after Sinkhorn steps that end on columns, 1 on average: float32 (images, n).

    Args:
        cost: (images, n, n), rows are sources.
        present: bool (images, n).
        epsilon: weight of the entropy.
        iterations: of a step on rows and one on columns.
    """
    pairs = present[:, :, None] & present[:, None]
    kernel = torch.exp(-cost / epsilon).masked_fill(~pairs, 0)
    rows = columns = present.to(kernel)
    for _ in range(iterations):
        rows = torch.where(present, 1 / (kernel @ columns[..., None])[..., 0], 0)
        columns = torch.where(present, 1 / (rows[:, None] @ kernel)[:, 0], 0)
    return (rows * (kernel @ columns[..., None])[..., 0]).float()
