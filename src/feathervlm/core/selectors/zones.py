"""A share of the budget for every part of an image, so that no part is lost to another.

Zones are cut from the whole image, whatever has left it, and never span two frames or planes. What is kept inside a
zone is the best by a criterion; how much each zone gets is this file's business.
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
from feathervlm.core.tensor_ops import first_n, reserve_first
from feathervlm.core.validation import check_choice, check_int

Rule = Literal["equal", "proportional", "softmax"]


Rounding = Literal["fraction", "weight"]


def quotas(wanted: Tensor, weights: Tensor, sizes: Tensor, rounding: Rounding = "fraction") -> Tensor:
    """Share out a count among zones in proportion to their weights, none getting more than its size.

    What a full zone cannot take is offered to the others again, in proportion; zones of no weight come last. Fractions
    are cut off, and the tokens that this leaves go one by one to the zones with the largest fraction or with the
    largest weight, of equals to the first.

    Args:
        wanted: long (images,), at most the sum of sizes.
        weights: (images, zones), at least 0.
        sizes: long (images, zones).
        rounding: whether the largest "fraction" or "weight" takes what is spare.

    Returns:
        long (images, zones), whose sums are `wanted`.
    """
    wide = torch.float32 if weights.device.type == "mps" else torch.float64
    room, weights = sizes.to(wide), weights.to(wide)
    exact = _level(wanted.to(wide), weights, room)
    exact = exact + _level(wanted - exact.sum(1), torch.ones_like(room), room - exact)
    whole = (exact + 2.0**-20).floor().minimum(room)  # 5.999999 is six
    fraction = ((exact - whole) * 2**20).round()
    order = first_n([-(fraction if rounding == "fraction" else weights)], whole < room, wanted - whole.sum(1).long())
    return whole.long() + order.long()


def _level(wanted: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    """min(room, level * weight) of every zone, with the level at which the sum is `wanted`, as far as there is room."""
    weights = weights.masked_fill(room <= 0, 0)
    full = torch.where(weights > 0, room / weights, float("inf"))  # the level at which a zone is full
    full, order = full.sort(1)
    taken, active = room.gather(1, order), weights.gather(1, order)
    before, active = taken.cumsum(1) - taken, active.flip(1).cumsum(1).flip(1)
    enough = (before + full * active >= wanted[:, None]).int()
    first = enough.argmax(1, keepdim=True)
    level = (wanted[:, None] - before.gather(1, first)) / active.gather(1, first)
    level = torch.where(enough.any(1, keepdim=True), level, float("inf"))
    return torch.where(weights > 0, torch.minimum(room, level * weights), 0.0)


@dataclass(frozen=True)
class Zone(Budgeted):
    """Give every part of an image a share of the budget and keep the best tokens of each part.

    Equal shares of windows are VScan's local half (arXiv 2505.22654) and Nuwa's regions (arXiv 2602.02951); shares
    in proportion to a score are HoloV's (arXiv 2510.02912), by softmax GridPrune's (arXiv 2511.10081). None of their
    tokens are lost: what a full part cannot take goes to the others.

    Args:
        criterion: what is best in a zone.
        keep: fraction or number of tokens kept of the whole image.
        partition: "window", squares of `by` x `by` cells; "grid", `by` x `by` parts of every frame; "chunk", `by` runs of the
            sequence.
        partition_size: see `cut`.
        share: the same for all zones ("equal"), in proportion to the mean weight of their tokens, or to its exponential
            ("softmax").
        weight: criterion of the weight, None for `criterion`. Negative means count as none unless "softmax".
        rounding: whether tokens that do not divide go to zones with the largest "fraction" or the largest "weight".
        of: whether a fraction is of the `original` count of tokens or of the `current` one.

    Raises:
        PruningError: if a parameter is out of range.
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
        """The best of every zone; given tokens before all others, and the rest of the budget shared out."""
        images = ImageRows(tokens)
        if not images.longest:
            return first
        held, pool, wanted = reserve_first(images.present, images.mark(first), self.budget(tokens).flatten())
        zone, scores = (
            part_of_each(images, self.partition, self.partition_size),
            images.take(tokens.score(self.criterion)),
        )
        sizes = sum_per_part(pool.long(), zone)
        quota = quotas(
            torch.minimum(wanted, pool.sum(1)), self._weights(images, pool, zone, sizes), sizes, self.rounding
        )
        return images.put(held | (pool & (rank_in_part(pool, zone, scores) < quota.gather(1, zone))))

    def _weights(self, images: ImageRows, pool: Tensor, zone: Tensor, sizes: Tensor) -> Tensor:
        """Weight of every zone, at least 0: (images, n)."""
        if self.share == "equal":
            return torch.ones_like(sizes, dtype=torch.float32)
        scores = images.take(images.tokens.score(self.weight or self.criterion)).masked_fill(~pool, 0)
        wide = torch.float32 if scores.device.type == "mps" else torch.float64
        means = sum_per_part(scores.to(wide), zone) / sizes.clamp(min=1)
        if self.share == "proportional":
            return means.clamp(min=0)
        return (means - means.masked_fill(sizes == 0, float("-inf")).amax(1, keepdim=True)).exp()
