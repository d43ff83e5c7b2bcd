"""Sets of rows of a forward that a layer treats in different ways."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.engine.gather import gather_rows


@dataclass(frozen=True, eq=False)
class RowSet:
    """Some rows of a forward.

    Attributes:
        positions: Original position of every row, long (batch, rows).
        valid: False on padding and fillers, bool (batch, rows); None if all rows are real.
        index: Where the rows are in the tensor that a layer is given, long (batch, rows); None if they are that tensor.
    """

    positions: Tensor
    valid: Tensor | None
    index: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Apart:
    """Rows whose keys and values are made apart from those of the rows that attend.

    Attributes:
        rows: These rows; their `index` is None where they are not in the tensor that a layer is given.
        attending: The rows that attend; their `index` is None if they are the whole tensor.
        place: For every row that is read, in order, where it is if the rows that attend follow these: long
            (batch, rows).
    """

    rows: RowSet
    attending: RowSet
    place: Tensor

    def join(self, states: Tensor, attending: Tensor) -> Tensor:
        """Return states of all rows that are read, (batch, rows, dim), from those of both kinds."""
        return gather_rows(torch.cat([states, attending], 1), self.place, -2)
