"""Turns: the parts of a batch whose images are chosen from by one query each.

A row with one prompt is one turn. A row into which several samples were packed has a turn for each of them, and a
training example has one for every answer that follows new images. Criteria and selectors see turns in place of rows, so
that every image is pruned as it would be in a row of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.layout import VisualLayout


@dataclass(frozen=True, eq=False)
class Turns:
    """The turns of a batch.

    Attributes:
        layout: Layout of the visual tokens of every turn: a mask of shape (turns, sequence).
        query: Position of the query of every turn, long (turns,).
        by_image: Position of the query of every image, long (batch, images); any position where a row has fewer.
        text: True for the text tokens that belong to a turn, up to its query, bool (turns, sequence).
        row: Row of the batch that each turn belongs to, long (turns,); None if every row is one turn.
        tokens: Index of every visual token of a turn among those of its row, long (turns, visual); None if every row is
            one turn.
        member: True for the tokens that the query may see, bool (turns, sequence); None if every row is one turn.
        segments: Number of the packed sample that every position belongs to, long (batch, sequence); None if no row is
            packed.
        depth: The largest number of turns of one sample.
    """

    layout: VisualLayout
    query: Tensor
    by_image: Tensor
    text: Tensor
    row: Tensor | None = None
    tokens: Tensor | None = None
    member: Tensor | None = None
    segments: Tensor | None = None
    depth: int = 1

    @classmethod
    def of_rows(cls, layout: VisualLayout, attended: Tensor | None, query: Tensor) -> "Turns":
        """Return one turn for every row.

        Args:
            layout: Layout of the rows.
            attended: False on padding, bool (batch, sequence); None if there is no padding.
            query: Position of the query of every row, long (batch,).
        """
        index = torch.arange(layout.mask.shape[1], device=query.device)
        text = ~layout.mask & (index <= query[:, None])
        by_image = query[:, None].expand(-1, layout.geometry().images)
        return cls(layout, query, by_image, text if attended is None else text & attended)

    def split(self, values: Tensor) -> Tensor:
        """Return values of the visual tokens of rows, (batch, visual, ...), for turns: (turns, visual, ...)."""
        if self.row is None or self.tokens is None:
            return values
        row, tokens = self.row.to(values.device), self.tokens.to(values.device)
        split: Tensor = values[row[:, None], tokens]
        return split & self.layout.geometry().exists.to(values.device) if split.dtype == torch.bool else split

    def join(self, values: Tensor, like: Tensor) -> Tensor:
        """Return values of the visual tokens of turns for rows, in a copy of `like` (batch, visual, ...)."""
        if self.row is None or self.tokens is None:
            return values
        exists = self.layout.geometry().exists
        place = self.row[:, None].expand_as(exists)[exists], self.tokens[exists]
        return like.index_put(tuple(index.to(like.device) for index in place), values[exists.to(values.device)])

    def join_groups(self, groups: Tensor, like: Tensor) -> Tensor:
        """Return groups, long (turns, visual), with the indices of the visual tokens of rows: long (batch, visual)."""
        if self.tokens is None:
            return groups
        named = torch.where(groups < 0, groups, self.tokens.gather(1, groups.clamp(min=0)))
        return self.join(named, torch.full_like(like, -1, dtype=torch.long))

    def whole_rows(self, tables: Tensor) -> Tensor:
        """Return the rows (..., batch or 1, sequence, channels) of tables that turns use: (..., turns or 1, ...)."""
        if self.row is None or tables.shape[-3] == 1:
            return tables
        return tables.index_select(-3, self.row.to(tables.device))

    def sample_starts(self) -> Tensor | None:
        """Return where the sample of every position begins, long (batch, sequence); None if no row is packed."""
        if self.segments is None:
            return None
        begins = torch.ones_like(self.segments, dtype=torch.bool)
        begins[:, 1:] = self.segments[:, 1:] != self.segments[:, :-1]
        index = torch.arange(self.segments.shape[1], device=self.segments.device)
        return torch.where(begins, index, 0).cummax(1).values


@dataclass(frozen=True)
class Turn:
    """One turn, read on the host.

    Attributes:
        row: Row of the batch.
        images: Indices of its images among those of the row.
        start: First position that its query may see.
        text: First position of its text.
        query: Position of its query.
    """

    row: int
    images: list[int]
    start: int
    text: int
    query: int


def assemble(layout: VisualLayout, attended: Tensor, turns: Sequence[Turn], segments: Tensor | None) -> Turns:
    """Return turns that were found on the host.

    Args:
        layout: Layout of the rows.
        attended: False on padding, bool (batch, sequence), on the layout's device.
        turns: The turns, in order.
        segments: See `Turns.segments`.
    """
    device, (_, sequence) = layout.mask.device, layout.mask.shape
    numbers = [[turn.row, turn.start, turn.text, turn.query] for turn in turns]
    row, start, text_start, query = torch.tensor(numbers, device=device).unbind(1)
    index = torch.arange(sequence, device=device)
    past = (index <= query[:, None]) & attended[row]
    visual, image = layout.positions()[row], layout.geometry().image[row]
    exists = layout.geometry().exists[row]
    chosen = torch.zeros(len(turns), layout.geometry().images, dtype=torch.bool)
    by_image = torch.zeros(len(layout.mask), layout.geometry().images, dtype=torch.long)
    for number, turn in enumerate(turns):
        chosen[number, turn.images] = True
        by_image[turn.row, turn.images] = turn.query
    own = chosen.to(device).gather(1, image) & exists
    mask = torch.zeros(len(turns), sequence + 1, dtype=torch.bool, device=device)
    mask = mask.scatter(1, torch.where(own, visual, sequence), True)[:, :sequence]
    pictures = [[layout.pictures[turn.row][image] for image in turn.images] for turn in turns]
    split = VisualLayout(mask, pictures, query, trusted=True)
    tokens = torch.sort((~own).to(torch.uint8), dim=1, stable=True).indices[:, : split.width]
    return Turns(
        split,
        query,
        by_image.to(device),
        past & ~layout.mask[row] & (index >= text_start[:, None]),
        row,
        tokens,
        past & (index >= start[:, None]),
        segments,
        max(Counter((turn.row, turn.start) for turn in turns).values()),
    )
