"""Where the tokens of every turn lie in the tensor that one layer sees."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from feathervlm.engine.gather import gather_rows
from feathervlm.engine.row_sets import Apart


@dataclass(eq=False)
class RowView:
    """Where the tokens of every turn are in the tensor that one layer sees.

    Where every row is one turn, the rows of a turn are those of the tensor; otherwise they are chosen from these.

    Attributes:
        query: Rows of the queries, long (turns, queries).
        visual: Row of every visual token, long (turns, visual); any row for tokens that were dropped.
        positions: Original position of every row, long (turns, rows).
        valid: False on padding and fillers, bool (turns, rows); None if all rows are real.
        table_rows: Original position whose row of the position tables each row uses, long (turns, rows).
        length: Number of rows of the tensor.
        chosen: Row of the batch that every turn belongs to, long (turns, 1), and the rows of the tensor that are its
            own, long (turns, rows); None if every row is one turn.
        apart: The rows that are read but do not attend; None if there are none.
        making_apart: Whether the layer is making the keys and values of these rows.
        read_tables: Position tables of the layer for all rows that are read; set where rows are apart.
    """

    query: Tensor
    visual: Tensor
    positions: Tensor
    valid: Tensor | None
    table_rows: Tensor
    length: int
    chosen: tuple[Tensor, Tensor] | None = None
    apart: Apart | None = None
    making_apart: bool = False
    read_tables: Any = None

    @property
    def given(self) -> int:
        """Number of rows that the layer's projections are given at the moment."""
        if self.apart is None:
            return self.length
        rows = self.apart.rows if self.making_apart else self.apart.attending
        return rows.positions.shape[1]

    def to(self, device: torch.device) -> "RowView":
        """Return the same on another device, where the layer that is measured is."""
        if self.positions.device == device:
            return self
        chosen = None if self.chosen is None else (self.chosen[0].to(device), self.chosen[1].to(device))
        return replace(
            self,
            query=self.query.to(device),
            visual=self.visual.to(device),
            positions=self.positions.to(device),
            valid=None if self.valid is None else self.valid.to(device),
            table_rows=self.table_rows.to(device),
            chosen=chosen,
        )

    def take(self, states: Tensor, rows: Tensor) -> Tensor:
        """Return rows of turns (turns, n) of states (..., batch or 1, length, dim): (..., turns, n, dim)."""
        if self.chosen is None:
            return gather_rows(states, rows, -2)
        row, own = (index.to(states.device) for index in self.chosen)
        if states.shape[-3] == 1:
            row = torch.zeros_like(row)
        taken: Tensor = states[..., row, own.gather(1, rows.to(own.device)), :]
        return taken

    def every_row(self, tree: Any) -> Any:
        """Return all rows of turns of tensors (..., batch or 1, length, dim), one or in a tuple, list or dict."""
        if self.chosen is None:
            return tree
        if isinstance(tree, Tensor):
            every = torch.arange(self.positions.shape[1], device=self.positions.device)
            return self.take(tree, every.expand_as(self.positions))
        if isinstance(tree, dict):
            return {key: self.every_row(value) for key, value in tree.items()}
        return type(tree)(map(self.every_row, tree)) if isinstance(tree, tuple | list) else tree

    def mask_of(self, mask: Tensor, queries: Tensor) -> Tensor:
        """Return the part of a mask (batch or 1, length, length) that queries (turns, n) have: (turns, n, rows)."""
        mask = self.take(mask.expand(mask.shape[0], -1, -1), queries)
        return mask if self.chosen is None else gather_rows(mask, self.chosen[1][:, None], -1)
