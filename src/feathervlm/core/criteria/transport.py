"""A criterion by optimal transport: how much of a layer's output a token's state supplies (TopV, arXiv 2503.18278).

States of an image that enter a layer are sources, the outputs of the norm after its attention are targets, and the plan
that moves the sources to the targets is found by a few Sinkhorn steps. No attention is read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates, Criterion
from feathervlm.core.errors import PruningError
from feathervlm.core.image_rows import BLOCK, ImageRows
from feathervlm.core.signals import LayerStates, Signal
from feathervlm.core.tensor_ops import to_float64
from feathervlm.core.validation import check_int, check_number

STATES = LayerStates("entry"), LayerStates("middle")


@dataclass(frozen=True)
class OptimalTransport(Criterion):
    """Mass that each token sends in an entropic transport plan between uniform marginals, times the number of tokens.

    Costs are the distance of states |s_i - t_j| and the distance of cells 1 - exp(-d_ij^2 / (2 sigma^2)), each scaled
    to [0, 1] within the image and weighted. Each iteration scales rows, then columns: columns sum exactly to their
    marginal, and row sums still differ. After a last step on rows they would be the same for every token. For the same
    reason a cost that depends on the source alone has no effect, and there is none. Cells of different planes or frames
    are infinitely far apart.

    Args:
        feature: Weight of the distance of states.
        spatial: Weight of the distance of cells.
        sigma: Reach of the distance of cells, in cells.
        epsilon: Weight of the entropy.
        iterations: Number of Sinkhorn iterations.

    Raises:
        PruningError: If a parameter is out of range.
    """

    feature: float = 1.0
    spatial: float = 1.0
    sigma: float = 10.0
    epsilon: float = 0.1
    iterations: int = 3

    def __post_init__(self) -> None:
        for name, minimum in (("feature", 0.0), ("spatial", 0.0), ("sigma", 1e-3), ("epsilon", 1e-3)):
            check_number(getattr(self, name), name, minimum)
        if self.feature + self.spatial > 500 * self.epsilon:  # beyond that, exp(-cost / epsilon) underflows in float64
            largest = self.feature + self.spatial
            raise PruningError(f"epsilon={self.epsilon!r} is too small for costs up to {largest:g}; increase it.")
        check_int(self.iterations, "iterations")

    def signals(self) -> tuple[Signal, ...]:
        return STATES

    def score(self, tokens: Candidates) -> Tensor:
        images = ImageRows(tokens)
        if not images.longest:
            return torch.zeros_like(tokens.present, dtype=torch.float32)
        sources, targets = (to_float64(images.take(tokens.signals.read(states)), images.present) for states in STATES)
        cells = self._cells(images)
        # All pairs are compared, so a few images are processed at a time.
        step, sent = max(1, BLOCK // images.longest**2), []
        for start in range(0, len(sources), step):
            some = slice(start, start + step)
            cost = self._cost(sources[some], targets[some], cells[some], images.present[some])
            sent.append(sent_by(cost, images.present[some], self.epsilon, self.iterations))
        return images.put(torch.cat(sent))

    def _cells(self, images: ImageRows) -> Tensor:
        """Return (plane, frame, row, column) of every token: long (images, longest, 4)."""
        place = images.tokens.geometry
        return images.take(torch.stack([place.plane, place.frame, place.row, place.col], -1))

    def _cost(self, sources: Tensor, targets: Tensor, cells: Tensor, present: Tensor) -> Tensor:
        """Compute the costs of all pairs: (images, n, n)."""
        pairs = present[:, :, None] & present[:, None]
        square = sources.square().sum(-1)[:, :, None] + targets.square().sum(-1)[:, None]
        distance = (square - 2 * sources @ targets.transpose(1, 2)).clamp(min=0).sqrt().float()
        apart = cells[:, :, None] - cells[:, None]
        near = torch.exp(-apart[..., 2:].square().sum(-1) / (2 * self.sigma**2)) * (apart[..., :2] == 0).all(-1)
        cost = self.feature * scaled(distance, pairs) + self.spatial * scaled(1 - near, pairs)
        return cost.to(sources.dtype)


def scaled(values: Tensor, which: Tensor) -> Tensor:
    """Scale values (images, n, n) to [0, 1] over bool `which` of every image; zeros if all of them are the same."""
    low = values.masked_fill(~which, float("inf")).amin((1, 2), keepdim=True)
    high = values.masked_fill(~which, float("-inf")).amax((1, 2), keepdim=True)
    return torch.where(which & (high > low), (values - low) / (high - low), 0.0)


def sent_by(cost: Tensor, present: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Compute the row sums of the plan after Sinkhorn steps that end on columns, 1 on average: float32 (images, n).

    Args:
        cost: Tensor of shape (images, n, n); rows are sources.
        present: bool tensor of shape (images, n).
        epsilon: Weight of the entropy.
        iterations: Number of iterations, each a step on rows and one on columns.
    """
    pairs = present[:, :, None] & present[:, None]
    kernel = torch.exp(-cost / epsilon).masked_fill(~pairs, 0)
    rows = columns = present.to(kernel)
    for _ in range(iterations):
        rows = torch.where(present, 1 / (kernel @ columns[..., None])[..., 0], 0)
        columns = torch.where(present, 1 / (rows[:, None] @ kernel)[:, 0], 0)
    return (rows * (kernel @ columns[..., None])[..., 0]).float()
