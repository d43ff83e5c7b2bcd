"""A selector that gives every part of an image a share of the budget, so that no part is lost to another.

Parts are cut from the whole image, whatever earlier stages dropped, and never span two frames or planes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from feathervlm.core.budget import Keep
from feathervlm.core.candidates import Candidates, Criterion, check_criterion
from feathervlm.core.image_rows import ImageRows
from feathervlm.core.partition import Partition, part_of_each, rank_in_part, sum_per_part
from feathervlm.core.selectors.base import Base, Budgeted
from feathervlm.core.tensor_ops import first_n, reserve_first, widest_float
from feathervlm.core.validation import check_choice, check_int

Rule = Literal["equal", "proportional", "softmax"]


Rounding = Literal["fraction", "weight"]


def quotas(count: Tensor, weights: Tensor, sizes: Tensor, rounding: Rounding = "fraction") -> Tensor:
    """Distribute a count over parts in proportion to their weights, with at most its size for each part.

    What a full part cannot take is offered to the others in proportion; parts of zero weight come last. Shares are
    rounded down, and the tokens that remain go one by one to the parts with the largest fraction or the largest weight,
    of equal parts to the first.

    Args:
        count: long tensor of shape (images,), at most the sum of sizes.
        weights: Tensor of shape (images, parts), at least 0.
        sizes: long tensor of shape (images, parts).
        rounding: Parts that get one of the remaining tokens: with the largest "fraction" or the largest "weight".

    Returns:
        Long tensor of shape (images, parts) whose sums are `count`.
    """
    wide = widest_float(weights)
    room, weights = sizes.to(wide), weights.to(wide)
    exact = _level(count.to(wide), weights, room)
    exact = exact + _level(count - exact.sum(1), torch.ones_like(room), room - exact)
    whole = (exact + 2.0**-20).floor().minimum(room)  # so that 5.999999 counts as 6
    fraction = ((exact - whole) * 2**20).round()
    order = first_n([-(fraction if rounding == "fraction" else weights)], whole < room, count - whole.sum(1).long())
    return whole.long() + order.long()


def _level(count: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    """Return min(room, level * weight) of every part, with the level at which the sum is `count`, if there is room."""
    weights = weights.masked_fill(room <= 0, 0)
    full = torch.where(weights > 0, room / weights, float("inf"))  # the level at which a part is full
    full, order = full.sort(1)
    taken, active = room.gather(1, order), weights.gather(1, order)
    before, active = taken.cumsum(1) - taken, active.flip(1).cumsum(1).flip(1)
    enough = (before + full * active >= count[:, None]).int()
    first = enough.argmax(1, keepdim=True)
    level = (count[:, None] - before.gather(1, first)) / active.gather(1, first)
    level = torch.where(enough.any(1, keepdim=True), level, float("inf"))
    return torch.where(weights > 0, torch.minimum(room, level * weights), 0.0)


@dataclass(frozen=True)
class Zone(Budgeted):
    """Give every part of an image a share of the budget and keep the best tokens of each part.

    Equal shares of windows are the local half of VScan (arXiv 2505.22654) and the regions of Nuwa (arXiv 2602.02951);
    shares in proportion to a score are HoloV's (arXiv 2510.02912), by softmax GridPrune's (arXiv 2511.10081). Unlike
    theirs, no token of the budget is lost: what a full part cannot take goes to the others.

    Args:
        criterion: Criterion of the ranking inside a part.
        keep: Fraction or number of tokens kept of the whole image.
        partition: "window", squares of cells; "grid", equal parts of every frame; "chunk", runs of the sequence.
        partition_size: Side of a window in cells, parts along a side of the grid, or number of chunks.
        share: "equal" for all parts, "proportional" to the mean weight of their tokens, or to its exponential
            ("softmax").
        weight: Criterion of the weight, None for `criterion`. Negative means count as zero unless "softmax".
        rounding: Parts that get the tokens that do not divide: with the largest "fraction" or the largest "weight".
        of: Whether a fraction is of the `original` count of tokens or of the `current` one.

    Raises:
        PruningError: If a parameter is out of range.
    """

    criterion: Criterion
    keep: Keep
    partition: Partition = "window"
    partition_size: int = 6
    share: Rule = "equal"
    weight: Criterion | None = None
    rounding: Rounding = "fraction"
    of: Base = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_criterion(self.criterion, "criterion")
        if self.weight is not None:
            check_criterion(self.weight, "weight")
        check_choice(self.partition, get_args(Partition), "partition")
        check_choice(self.share, get_args(Rule), "share")
        check_choice(self.rounding, get_args(Rounding), "rounding")
        check_int(self.partition_size, "partition_size")

    def fill(self, tokens: Candidates, first: Tensor) -> Tensor:
        images = ImageRows(tokens)
        if not images.longest:
            return first
        reserved, pool, count = reserve_first(images.present, images.mark(first), self.budget(tokens).flatten())
        part = part_of_each(images, self.partition, self.partition_size)
        scores = images.take(tokens.score(self.criterion))
        sizes = sum_per_part(pool.long(), part)
        weights = self._weights(images, pool, part, sizes)
        quota = quotas(torch.minimum(count, pool.sum(1)), weights, sizes, self.rounding)
        return images.put(reserved | (pool & (rank_in_part(pool, part, scores) < quota.gather(1, part))))

    def _weights(self, images: ImageRows, pool: Tensor, part: Tensor, sizes: Tensor) -> Tensor:
        """Compute the weight of every part, at least 0: (images, n)."""
        if self.share == "equal":
            return torch.ones_like(sizes, dtype=torch.float32)
        scores = images.take(images.tokens.score(self.weight or self.criterion)).masked_fill(~pool, 0)
        means = sum_per_part(scores.to(widest_float(scores)), part) / sizes.clamp(min=1)
        if self.share == "proportional":
            return means.clamp(min=0)
        return (means - means.masked_fill(sizes == 0, float("-inf")).amax(1, keepdim=True)).exp()
