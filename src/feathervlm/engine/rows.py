"""Which rows of a forward are left, and where the query and the visual tokens are among them.

Pure bookkeeping: `drop` takes what a stage chose and says which rows to gather; everything that points at rows then
points at those that are left. Knows neither layers nor caches.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feathervlm.core.budget import ImageTokens
from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import Picture, VisualLayout, tokens_of
from feathervlm.core.positions import moved
from feathervlm.core.schedule import Stage
from feathervlm.engine.gather import tree_rows
from feathervlm.engine.probes.base import RowView
from feathervlm.engine.report.records import PendingFlag

ENDS_INSIDE = (
    "The prompt ends inside an image, so there is no text token to ask with; pass the whole prompt in one forward "
    "(no chunked prefill), with text after the image."
)


class RowTracker:
    """The rows that are left.

    Args:
        layout: of the visual tokens.
        attended: bool (batch, sequence), False on padding; None if there is none.
        query: long (batch,), position that asks for tokens.

    Attributes:
        positions: long (batch, rows), original position of every row.
        valid: bool (batch, rows), False on padding and fillers; None if all are real.
        query: long (batch,), row that asks.
        slots: long (batch, visual), row of every visual token; anything where it is gone.
        present: bool (batch, visual), the tokens that are left.
        places: long (batch, rows), original position whose row of the position tables every row takes.
        renumbered: whether positions were closed up, so that what follows the input moves, too.
        foreseen: whether the number of rows left follows from shapes alone, so that every such prompt has as many.
    """

    def __init__(self, layout: VisualLayout, attended: Tensor | None, query: Tensor) -> None:
        self.layout, self.geometry = layout, layout.geometry()
        self.batch, self.sequence = layout.mask.shape
        self.positions = torch.arange(self.sequence, device=layout.mask.device)[None].expand(self.batch, -1)
        self.valid, self.query = attended, query
        self.slots, self.present = layout.positions(), self.geometry.exists
        self.places = self.positions
        self._places: Tensor | None = None  # (batch, sequence), for every original position; None if none has moved
        self.renumbered = False
        self.foreseen = True
        self._sizes = [list(map(tokens_of, sample)) for sample in layout.pictures]
        self._ends_inside: PendingFlag | None = None

    @property
    def dropped(self) -> int:
        """How many rows are gone."""
        return self.sequence - self.positions.shape[1]

    @property
    def shift(self) -> Tensor | None:
        """By how much the positions of what follows the input are reduced, long (batch, 1); None if they are not."""
        if self._places is None or not self.renumbered:
            return None
        return self.sequence - 1 - self._places.amax(1, keepdim=True)

    def row(self) -> RowView:
        """Where things are now."""
        return RowView(self.query[:, None], self.slots, self.positions, self.valid)

    def tables(self, tables: Any) -> Any:
        """Position tables of a layer for the rows that are left; None if it has none."""
        return None if tables is None else tree_rows(tables, self.places)

    def check(self) -> None:
        """Raise `Unprunable` for what a stage of known size did not wait to hear from the device."""
        if self._ends_inside is not None and self._ends_inside:
            raise Unprunable(ENDS_INSIDE)

    def drop(self, stage: Stage, chosen: Tensor, plan: bool) -> Tensor:
        """Keep text and the `chosen` visual tokens only.

        Args:
            stage: that chose.
            chosen: bool (batch, visual), some of those present.
            plan: whether the stage's selector did choose, so that its own count holds.

        Returns:
            long (batch, n), the rows to gather, in order. Shorter samples are filled on the left, as padding is:
            with tokens just dropped, which stay masked.
        """
        count = self.positions.shape[1]
        kept = torch.ones(self.batch, count + 1, dtype=torch.bool, device=chosen.device)
        kept = kept.scatter(1, torch.where(self.present, self.slots, count), chosen)[:, :count]
        if self.valid is not None:
            kept = kept & self.valid
        sizes = self._planned(stage) if plan and self.valid is None else None
        self.foreseen = self.foreseen and sizes is not None
        numbers = self._count(kept, chosen) if sizes is None else self._adopt(sizes)
        most = max(numbers)
        order = torch.sort(kept.to(torch.uint8), dim=1, stable=True).indices[:, count - most :]
        self._follow(stage, chosen, order)
        self.valid = kept.gather(1, order) if min(numbers) < most else None
        return order

    def _query_inside(self) -> Tensor:
        return (self.present & (self.slots == self.query[:, None])).any(1)

    def _planned(self, stage: Stage) -> list[list[int]] | None:
        """Tokens that every image keeps, if that is certain beforehand."""

        def sizes(pictures: Sequence[Picture], current: Sequence[int]) -> list[int | None]:
            images = [ImageTokens(picture, size) for picture, size in zip(pictures, current, strict=True)]
            return [stage.select.size(image) for image in images]

        planned = [sizes(*pair) for pair in zip(self.layout.pictures, self._sizes, strict=True)]
        known = [[size for size in sample if size is not None] for sample in planned]
        return known if list(map(len, known)) == list(map(len, planned)) else None

    def _adopt(self, sizes: list[list[int]]) -> list[int]:
        """Rows that every sample keeps, from the planned sizes: nothing is asked of the device."""
        if self._ends_inside is None:
            self._ends_inside = PendingFlag(self._query_inside().any())
        dropped = [sum(old) - sum(new) for old, new in zip(self._sizes, sizes, strict=True)]
        self._sizes = sizes
        return [self.positions.shape[1] - number for number in dropped]

    def _count(self, kept: Tensor, chosen: Tensor) -> list[int]:
        """Rows that every sample keeps, from the device: the stage's one sync."""
        images = torch.zeros(self.batch, self.geometry.images, dtype=torch.long, device=chosen.device)
        images.scatter_add_(1, self.geometry.image, chosen.long())
        rows = torch.stack([kept.sum(1), self._query_inside().long()], 1)
        facts = torch.cat([rows, images], dim=1).tolist()
        if any(fact[1] for fact in facts):
            raise Unprunable(ENDS_INSIDE)
        self._sizes = [fact[2 : 2 + len(images)] for fact, images in zip(facts, self.layout.pictures, strict=True)]
        return [fact[0] for fact in facts]

    def _follow(self, stage: Stage, chosen: Tensor, order: Tensor) -> None:
        """Move everything that points at rows to the rows that are left."""
        if stage.positions != "preserve":
            if self._places is None:
                self._places = torch.arange(self.sequence, device=order.device).repeat(self.batch, 1)
            visual = self.layout.positions()
            self._places = moved(stage.positions, self._places, visual, self.geometry, chosen, stage.seed)
            self.renumbered = self.renumbered or stage.positions == "renumber"
        ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
        place = torch.zeros_like(self.positions).scatter(1, order, ranks)
        self.positions = self.positions.gather(1, order)
        self.places = self.positions if self._places is None else self._places.gather(1, self.positions)
        self.slots = place.gather(1, self.slots)
        self.query = place.gather(1, self.query[:, None])[:, 0]
        self.present = chosen
