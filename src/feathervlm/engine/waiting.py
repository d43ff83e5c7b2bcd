"""Groups of tokens that wait: their means run in their place and hand their change on to the members."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathervlm.core.mergers.base import group_means
from feathervlm.engine.gather import gather_rows
from feathervlm.engine.rows import RowTracker


@dataclass(eq=False)
class WaitingGroups:
    """The groups of one stage.

    Attributes:
        groups: Token in whose row the mean of each token's group runs, long (batch, visual): itself for tokens that run
            on, -1 for none.
        runs: Tokens in whose rows means run, bool (batch, visual).
        waits: Tokens that wait, bool (batch, visual).
        means: The means as they entered the stage's layer, at those tokens, and the states of tokens that run on,
            (batch, visual, dim).
    """

    groups: Tensor
    runs: Tensor
    waits: Tensor
    means: Tensor

    @classmethod
    def of(cls, groups: Tensor, hidden: Tensor, rows: RowTracker, kept: Tensor) -> "WaitingGroups":
        """Return the groups of a stage.

        Args:
            groups: What the stage chose for every turn, long (turns, visual).
            hidden: States that enter the stage's layer, (batch, rows, dim).
            rows: The rows, which hold all candidates of the stage.
            kept: Tokens that run on, bool (batch, visual).
        """
        groups = rows.turns.join_groups(groups, rows.present)
        index = torch.arange(groups.shape[1], device=groups.device)
        waits = rows.present & ~kept & (groups >= 0)
        return cls(groups, waits & (groups == index), waits, group_means(gather_rows(hidden, rows.visual, -2), groups))

    def update(self, full: Tensor, before: Tensor, rows: RowTracker) -> Tensor:
        """Return the states of all rows, those of tokens that waited changed as much as the mean of their group was.

        Args:
            full: States of all rows after the layers, (batch, sequence, dim).
            before: States of all rows as they entered the stage.
            rows: The rows that ran.
        """
        place, groups = rows.layout.positions(), self.groups.clamp(min=0).to(full.device)
        now, own = gather_rows(full, place, -2), gather_rows(before.to(full.device), place, -2)
        change = now - self.means.to(full.device)
        change = change.gather(1, groups[..., None].expand_as(change))
        states = torch.where(self.waits[..., None].to(full.device), own + change, now)
        # Tokens that do not exist go to a row that is cut off again.
        exists = rows.layout.geometry().exists
        place = torch.where(exists, place, rows.sequence).to(full.device)[..., None].expand_as(states)
        return torch.nn.functional.pad(full, (0, 0, 0, 1)).scatter(1, place, states)[:, :-1]
