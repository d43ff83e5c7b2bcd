"""Where the text of the prompt is: what criteria that compare images with words may read.

Text is what is neither visual nor padding, up to the token that asks. It never leaves, so its places are told once, in
original positions, and found again among the rows of any layer. Knows neither layers nor what is measured.
"""

from functools import cached_property

import torch
from torch import Tensor

from feathervlm.core.layout import VisualLayout
from feathervlm.core.signals import IsText
from feathervlm.engine.call import ModelCall


class PromptText:
    """The text tokens of every sample, padded to as many as a sample can have: (batch, texts).

    Args:
        layout: of the visual tokens.
        attended: bool (batch, sequence), False on padding; None if there is none.
        query: long (batch,), position that asks for tokens.
    """

    def __init__(self, layout: VisualLayout, attended: Tensor | None, query: Tensor) -> None:
        self.layout, self.attended, self.query = layout, attended, query

    @cached_property
    def _mask(self) -> Tensor:
        """Bool (batch, sequence)."""
        mask = self.layout.mask
        text = ~mask & (torch.arange(mask.shape[1], device=mask.device) <= self.query[:, None])
        return text if self.attended is None else text & self.attended

    @cached_property
    def places(self) -> Tensor:
        """Long (batch, texts), original positions, in order; any others where a sample has fewer."""
        # Visual tokens are counted on the host, so the width is known without asking the device.
        width = self._mask.shape[1] - min(self.layout.counts)
        return torch.sort((~self._mask).to(torch.uint8), dim=1, stable=True).indices[:, :width]

    def exists(self, signal: IsText) -> Tensor:
        """Bool (batch, texts), the tokens that there are of those asked for."""
        found = self._mask.gather(1, self.places)
        if signal.text == "question":
            index = torch.arange(1, self.layout.mask.shape[1] + 1, device=found.device)
            found = found & (self.places >= (self.layout.mask * index).amax(1, keepdim=True))
        return found

    def start(self, call: ModelCall) -> Tensor:
        """Long (batch,), the position of the first token that is no padding."""
        attended, mask = self.attended, call.arguments.get("attention_mask")
        if isinstance(mask, dict):
            mask = mask.get("full_attention")
        if attended is None and isinstance(mask, Tensor) and mask.dim() == 4:  # made for a static cache
            last = mask[:, 0, -1, : self.layout.mask.shape[1]].expand(len(self.layout.mask), -1)
            attended = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        return torch.zeros_like(self.query) if attended is None else attended.to(torch.uint8).argmax(1)

    def rows(self, positions: Tensor) -> Tensor:
        """The row of every text token, long (batch, texts), where rows have these original positions (batch, rows)."""
        row = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
        return torch.zeros_like(self.layout.mask, dtype=torch.long).scatter(1, positions, row).gather(1, self.places)
