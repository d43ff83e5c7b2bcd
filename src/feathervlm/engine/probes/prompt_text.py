"""Where the text of the prompt is, for criteria that compare images with words.

A text token is one that is neither visual nor padding, up to the token that asks. Text is never dropped, so its
original positions are computed once and looked up among the rows of any layer.
"""

from functools import cached_property

import torch
from torch import Tensor

from feathervlm.core.layout import VisualLayout
from feathervlm.core.signals import IsText
from feathervlm.engine.call import ModelCall


class PromptText:
    """The text tokens of every sample, padded to the most that a sample can have: (batch, texts).

    Args:
        layout: Layout of the visual tokens.
        attended: False on padding, bool (batch, sequence); None if there is no padding.
        query: Position whose state asks for tokens, long (batch,).
    """

    def __init__(self, layout: VisualLayout, attended: Tensor | None, query: Tensor) -> None:
        self.layout, self.attended, self.query = layout, attended, query

    @cached_property
    def _mask(self) -> Tensor:
        """True for text tokens, bool (batch, sequence)."""
        mask = self.layout.mask
        text = ~mask & (torch.arange(mask.shape[1], device=mask.device) <= self.query[:, None])
        return text if self.attended is None else text & self.attended

    @cached_property
    def positions(self) -> Tensor:
        """Original positions in order, long (batch, texts); any positions where a sample has fewer."""
        # Visual tokens are counted on the host, so the width is known without asking the device.
        width = self._mask.shape[1] - min(self.layout.counts)
        return torch.sort((~self._mask).to(torch.uint8), dim=1, stable=True).indices[:, :width]

    def exists(self, signal: IsText) -> Tensor:
        """Return which of the text tokens exist and belong to the part that is asked for, bool (batch, texts)."""
        exists = self._mask.gather(1, self.positions)
        if signal.text == "question":
            index = torch.arange(1, self.layout.mask.shape[1] + 1, device=exists.device)
            exists = exists & (self.positions >= (self.layout.mask * index).amax(1, keepdim=True))
        return exists

    def start(self, call: ModelCall) -> Tensor:
        """Return the position of the first token that is not padding, long (batch,)."""
        attended, mask = self.attended, call.arguments.get("attention_mask")
        if isinstance(mask, dict):
            mask = mask.get("full_attention")
        if attended is None and isinstance(mask, Tensor) and mask.dim() == 4:  # made for a static cache
            last = mask[:, 0, -1, : self.layout.mask.shape[1]].expand(len(self.layout.mask), -1)
            attended = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        return torch.zeros_like(self.query) if attended is None else attended.to(torch.uint8).argmax(1)

    def rows(self, positions: Tensor) -> Tensor:
        """Return the row of every text token, long (batch, texts).

        Args:
            positions: Original position of every row, long (batch, rows).
        """
        row = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
        all_rows = torch.zeros_like(self.layout.mask, dtype=torch.long).scatter(1, positions, row)
        return all_rows.gather(1, self.positions)
