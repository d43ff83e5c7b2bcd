"""Where the text of the prompt is, for criteria that compare images with words.

A text token is one that is neither visual nor padding, up to the token that asks. Text is never dropped, so its
original positions are computed once and looked up among the rows of any layer.
"""

from functools import cached_property

import torch
from torch import Tensor

from feathervlm.core.signals import IsText
from feathervlm.engine.call import ModelCall
from feathervlm.engine.packing import attended_of, full_mask
from feathervlm.engine.turns import Turns


class PromptText:
    """The text tokens of every turn, padded to the most that a turn can have: (turns, texts).

    Args:
        turns: The turns of the batch.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns, self.layout = turns, turns.layout

    @cached_property
    def positions(self) -> Tensor:
        """Original positions in order, long (turns, texts); any positions where a turn has fewer."""
        text = self.turns.text
        # Visual tokens are counted on the host, so the width of rows is known without asking the device.
        width = text.shape[1] - min(self.layout.counts) if self.turns.row is None else int(text.sum(1).max())
        return torch.sort((~text).to(torch.uint8), dim=1, stable=True).indices[:, :width]

    def exists(self, signal: IsText) -> Tensor:
        """Return which of the text tokens exist and belong to the part that is asked for, bool (turns, texts)."""
        exists = self.turns.text.gather(1, self.positions)
        if signal.text == "question":
            index = torch.arange(1, self.layout.mask.shape[1] + 1, device=exists.device)
            exists = exists & (self.positions >= (self.layout.mask * index).amax(1, keepdim=True))
        return exists

    def start(self, call: ModelCall) -> Tensor:
        """Return the first position that is not padding, or that of the first text of a turn: long (turns,)."""
        mask = full_mask(call.arguments.get("attention_mask"))
        (_, sequence), text = call.shape, self.turns.text
        if self.turns.row is not None:
            return text.to(torch.uint8).argmax(1)
        attended = attended_of(call, text.device)
        if attended is None and isinstance(mask, Tensor) and mask.dim() == 4:  # made for a static cache
            last = mask[:, 0, -1, :sequence].expand(len(text), -1)
            attended = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        if attended is None:
            return torch.zeros_like(self.turns.query)
        return attended.to(text.device, torch.uint8).argmax(1)

    def rows(self, positions: Tensor) -> Tensor:
        """Return the row of every text token, long (turns, texts).

        Args:
            positions: Original position of every row, long (turns, rows).
        """
        positions = positions.to(self.layout.mask.device)
        row = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
        all_rows = torch.zeros_like(self.layout.mask, dtype=torch.long).scatter(1, positions, row)
        return all_rows.gather(1, self.positions)
