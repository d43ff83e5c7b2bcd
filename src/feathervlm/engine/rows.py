"""The rows of a forward: which original positions are present, and where the query and the visual tokens are.

Pure bookkeeping on tensors: `RowTracker.leave` takes the tokens that a stage chose, returns the rows to gather, and
moves everything that points at rows to the rows that stay. `RowTracker.rejoin` brings back those that did not leave for
ever.
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
from feathervlm.engine.gather import gather_tree
from feathervlm.engine.report.records import PendingFlag
from feathervlm.engine.row_sets import Apart, RowSet
from feathervlm.engine.row_view import RowView
from feathervlm.engine.turn_reader import ENDS_INSIDE
from feathervlm.engine.turns import Turns


class RowTracker:
    """The rows that are present in a forward.

    Args:
        layout: Layout of the visual tokens.
        attended: False on padding, bool (batch, sequence); None if there is no padding.
        turns: The turns of the batch.

    Attributes:
        positions: Original position of every row, long (batch, rows).
        valid: False on padding and fillers, bool (batch, rows); None if all rows are real.
        query: Row that asks, long (batch,); read only where every row is one turn.
        visual: Row of every visual token, long (batch, visual); any row for tokens that were dropped.
        present: True for visual tokens that run, or while a stage runs for its candidates, bool (batch, visual).
        apart: The rows that are read but do not attend; None if there are none.
        making_apart: Whether a layer is making the keys and values of these rows.
        read_tables: Position tables of the layer that runs, for all rows that are read; set where rows are apart.
        lighter: The rows of the tensor that run the half of each layer which the others skip; None if all rows do.
        table_rows: Original position whose row of the position tables each row uses, long (batch, rows).
        renumbered: Whether positions were closed up, so that the tokens after the input move as well.
        size_known: Whether the number of rows follows from shapes alone, so that it is the same for every such prompt.
    """

    def __init__(self, layout: VisualLayout, attended: Tensor | None, turns: Turns) -> None:
        self.layout, self.geometry, self.turns = layout, layout.geometry(), turns
        self.batch, self.sequence = layout.mask.shape
        self.positions = torch.arange(self.sequence, device=layout.mask.device)[None].expand(self.batch, -1)
        self.valid, self.query = attended, turns.by_image[:, 0]
        self.visual, self.present = layout.positions(), self.geometry.exists
        self.table_rows = self.positions
        self._moved: Tensor | None = None  # (batch, sequence), for every original position; None if none has moved
        self._starts = turns.sample_starts()
        self.renumbered = False
        self.size_known = True
        self.apart: Apart | None = None
        self.making_apart = False
        self.read_tables: Any = None
        self.lighter: RowSet | None = None
        self._before: tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor] | None = None
        self._sizes = [list(map(tokens_of, sample)) for sample in layout.pictures]
        self._ends_inside: PendingFlag | None = None

    @property
    def read(self) -> RowSet:
        """The rows that have keys and values, in order of their positions."""
        if self.apart is None or self._before is None:
            return RowSet(self.positions, self.valid)
        return RowSet(self._before[0], self._before[1])

    @property
    def attending(self) -> RowSet:
        """The rows that have queries."""
        return RowSet(self.positions, self.valid) if self.apart is None else self.apart.attending

    @property
    def attending_table_rows(self) -> Tensor:
        """`table_rows` of the rows that have queries."""
        return self.table_rows if self.apart is None else self.apart.attending.positions

    @property
    def away(self) -> bool:
        """Whether tokens that are frozen or wait are candidates of the next stage."""
        return self._before is not None

    @property
    def dropped(self) -> int:
        """The number of rows without keys and values."""
        return self.sequence - self.read.positions.shape[1]

    @property
    def shift(self) -> Tensor | None:
        """The number by which later positions are reduced, long (batch, 1); None if they are not."""
        if self._moved is None or not self.renumbered:
            return None
        return self.sequence - 1 - self._moved.amax(1, keepdim=True)

    def view(self) -> RowView:
        """Return where the tokens are now among the rows that are read."""
        turns = self.turns
        now = self.positions, self.valid, self.table_rows, self.visual, self.query, self.present
        positions, valid, table_rows, visual, query, _ = now if self.apart is None else self._before or now
        length = positions.shape[1]
        apart = self.apart, self.making_apart, self.read_tables
        if turns.row is None or turns.member is None:
            return RowView(query[:, None], visual, positions, valid, table_rows, length, None, *apart)
        positions = positions[turns.row]
        member = turns.member.gather(1, positions)
        if valid is not None:
            member = member & valid[turns.row]
        most = int(member.sum(1).max())
        own = torch.sort(member.to(torch.uint8), dim=1, stable=True).indices[:, length - most :]
        positions = positions.gather(1, own)
        rank = torch.arange(most, device=own.device).expand_as(own)
        row_of = torch.zeros_like(turns.member, dtype=torch.long).scatter(1, positions, rank)
        return RowView(
            row_of.gather(1, turns.query[:, None]),
            row_of.gather(1, turns.layout.positions()),
            positions,
            member.gather(1, own),
            table_rows[turns.row].gather(1, own),
            length,
            (turns.row[:, None], own),
            *apart,
        )

    def tables(self, tables: Any) -> Any:
        """Return the position tables of a layer for the rows that attend; None if the layer has no tables."""
        return None if tables is None else gather_tree(tables, self.attending_table_rows)

    def ranks(self) -> Tensor:
        """Return the number of every present row among those of its packed sample, long (batch or 1, rows)."""
        ranks = torch.arange(self.positions.shape[1], device=self.positions.device)[None]
        if self._starts is None:
            return ranks
        start = self._starts.gather(1, self.positions)
        begins = torch.nn.functional.pad(start.diff() != 0, (1, 0), value=True)
        return ranks - torch.where(begins, ranks, 0).cummax(1).values

    def check(self) -> None:
        """Raise `Unprunable` for a problem that a stage of known size did not wait to read from the device."""
        if self._ends_inside is not None and self._ends_inside:
            raise Unprunable(ENDS_INSIDE)

    def rejoin(self) -> None:
        """Make the tokens that are frozen or wait present again, for the next stage to choose from."""
        if self._before is not None:
            (self.positions, self.valid, self.table_rows, self.visual, self.query, self.present) = self._before
        self._before = self.apart = self.lighter = None

    def leave(self, stage: Stage, kept: Tensor, planned: bool) -> Tensor | None:
        """Let all visual tokens leave but the `kept` ones, for ever or in the way that the stage says.

        Args:
            stage: The stage that chose them.
            kept: Tokens that run on, bool (batch, visual), a subset of the present ones.
            planned: Whether the stage's own selector chose, so that the count it announces holds.

        Returns:
            The rows to gather, long (batch, n), in order; None if the tensor keeps all rows. Shorter samples are filled
            on the left, as padding is, with tokens that just left, which stay masked.
        """
        before = self._sizes
        stays = self._rows_of(kept, others=True)
        if self.valid is not None:
            stays = stays & self.valid
        sizes = self._planned(stage) if planned and self.valid is None else None
        self.size_known = self.size_known and sizes is not None
        numbers = self._count(stays, kept) if sizes is None else self._adopt(sizes)
        left = [sum(old) - sum(new) for old, new in zip(before, self._sizes, strict=True)]
        order, valid = _ordered(stays, numbers)
        if stage.leave == "drop" or not any(left):
            self._follow(stage, kept, order)
            self.valid = valid
            return order
        self._sizes = before
        now = self.positions, self.valid, self.table_rows, self.visual, self.query, self.present
        self._before = now
        if stage.leave == "freeze":
            attending = RowSet(self.positions.gather(1, order), valid, None if stage.skip is None else order)
            if stage.skip != "mlp":
                self.apart = self._apart(
                    self._rows_of(self.present & ~kept, others=False), left, attending, order, stage.skip
                )
            if stage.skip is not None:
                self.lighter = attending
                self.present = kept
                return None
        self._follow(stage, kept, order)
        self.valid = valid
        return order

    def _apart(self, frozen: Tensor, left: list[int], attending: RowSet, order: Tensor, skip: str | None) -> Apart:
        """Return the rows whose keys and values are made apart.

        Args:
            frozen: True for these among all rows, bool (batch, rows).
            left: Number of them in every sample.
            attending: The other rows.
            order: Where the other rows are, long (batch, n).
            skip: The half of each layer that they skip; None if they skip both.
        """
        index, valid = _ordered(frozen, left)
        ranks = [
            torch.zeros_like(self.positions).scatter(
                1, rows, torch.arange(start, start + rows.shape[1], device=rows.device).expand_as(rows)
            )
            for rows, start in ((index, 0), (order, index.shape[1]))
        ]
        rows = RowSet(self.positions.gather(1, index), valid, None if skip is None else index)
        return Apart(rows, attending, torch.where(frozen, ranks[0], ranks[1]))

    def _rows_of(self, tokens: Tensor, others: bool) -> Tensor:
        """Return the rows of visual tokens, bool (batch, rows).

        Args:
            tokens: Visual tokens, bool (batch, visual), a subset of the present ones.
            others: The value for rows of text.
        """
        count = self.positions.shape[1]
        rows = torch.full((self.batch, count + 1), others, device=tokens.device)
        return rows.scatter(1, torch.where(self.present, self.visual, count), tokens)[:, :count]

    def _query_inside(self) -> Tensor:
        if self.turns.row is not None:  # checked when the turns were found
            return torch.zeros(self.batch, dtype=torch.bool, device=self.present.device)
        return (self.present & (self.visual == self.query[:, None])).any(1)

    def _planned(self, stage: Stage) -> list[list[int]] | None:
        """Return the number of tokens that every image keeps, if that is certain beforehand."""

        def sizes(pictures: Sequence[Picture], current: Sequence[int]) -> list[int | None]:
            images = [ImageTokens(picture, size) for picture, size in zip(pictures, current, strict=True)]
            return [stage.select.size(image) for image in images]

        planned = [sizes(*pair) for pair in zip(self.layout.pictures, self._sizes, strict=True)]
        known = [[size for size in sample if size is not None] for sample in planned]
        return known if list(map(len, known)) == list(map(len, planned)) else None

    def _adopt(self, sizes: list[list[int]]) -> list[int]:
        """Return the number of rows that every sample keeps, from planned sizes and without reading the device."""
        if self._ends_inside is None:
            self._ends_inside = PendingFlag(self._query_inside().any())
        dropped = [sum(old) - sum(new) for old, new in zip(self._sizes, sizes, strict=True)]
        self._sizes = sizes
        return [self.positions.shape[1] - number for number in dropped]

    def _count(self, stays: Tensor, kept: Tensor) -> list[int]:
        """Read the number of rows that every sample keeps from the device: the one sync of a stage."""
        images = torch.zeros(self.batch, self.geometry.images, dtype=torch.long, device=kept.device)
        images.scatter_add_(1, self.geometry.image, kept.long())
        rows = torch.stack([stays.sum(1), self._query_inside().long()], 1)
        facts = torch.cat([rows, images], dim=1).tolist()
        if any(fact[1] for fact in facts):
            raise Unprunable(ENDS_INSIDE)
        self._sizes = [fact[2 : 2 + len(images)] for fact, images in zip(facts, self.layout.pictures, strict=True)]
        return [fact[0] for fact in facts]

    def _follow(self, stage: Stage, kept: Tensor, order: Tensor) -> None:
        """Move everything that points at rows to the rows `order` that stay."""
        if stage.positions != "preserve":
            if self._moved is None:
                self._moved = torch.arange(self.sequence, device=order.device).repeat(self.batch, 1)
            self._moved = self._move(stage, self._moved, kept)
            self.renumbered = self.renumbered or stage.positions == "renumber"
        ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
        new_row = torch.zeros_like(self.positions).scatter(1, order, ranks)
        self.positions = self.positions.gather(1, order)
        self.table_rows = self._table_rows(kept)
        self.visual = new_row.gather(1, self.visual)
        self.query = new_row.gather(1, self.query[:, None])[:, 0]
        self.present = kept

    def _move(self, stage: Stage, places: Tensor, kept: Tensor) -> Tensor:
        """Return the places of all tokens after a stage that moves them; see `core.positions.moved`."""
        turns, visual, geometry = self.turns, self.layout.positions(), self.layout.geometry()
        if turns.row is None or stage.positions == "renumber":
            return moved(stage.positions, places, visual, geometry, kept, stage.seed)
        own, now = turns.layout.positions(), places.gather(1, visual)
        then = moved(stage.positions, places[turns.row], own, turns.layout.geometry(), turns.split(kept), stage.seed)
        return places.scatter(1, visual, turns.join(then.gather(1, own), now))

    def _table_rows(self, kept: Tensor) -> Tensor:
        if self._moved is None:
            return self.positions
        places = self._moved
        if self._starts is not None and self.renumbered:  # only gaps of the token's own sample are closed
            gone = self.layout.geometry().exists & ~kept
            gaps = torch.zeros_like(places).scatter(1, self.layout.positions(), gone.long()).cumsum(1)
            places = places + torch.where(self._starts > 0, gaps.gather(1, (self._starts - 1).clamp(min=0)), 0)
        return places.gather(1, self.positions)


def _ordered(rows: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return some rows in order, filled on the left, long (batch, n), and which of them are no fillers.

    Args:
        rows: True for these rows, bool (batch, count).
        numbers: Number of them in every sample.

    Returns:
        The rows and, unless all samples have as many, bool (batch, n).
    """
    most = max(numbers)
    order = torch.sort(rows.to(torch.uint8), dim=1, stable=True).indices[:, rows.shape[1] - most :]
    return order, rows.gather(1, order) if min(numbers) < most else None
