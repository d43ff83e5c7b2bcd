"""What has gone where in one run of a vision encoder that merges.

Here pictures are rows of a batch, and as many patches are left of each; in `feathervlm.engine.vision.packed` they lie
one after the other in a single row.
"""

from typing import Any

import torch
from torch import Tensor

from feathervlm.core.encoder.base import EncoderMerging
from feathervlm.core.encoder.grouping import merge_groups, merged_sizes
from feathervlm.engine.report.records import EncoderRun


class MergeState:
    """One run of the encoder.

    Args:
        tower: what to merge.
        depth: layers of the encoder.
        rows: (images, tokens, dim), what enters the first.
        protected: tokens in front of the patches ([CLS]).

    Attributes:
        source: long (images, tokens), which of the tokens now there each of the first has gone into.
        sizes: float32 (images, tokens now there), how many of the first each stands for.
        entered: tokens of a picture that entered each layer.
        sources: `source` as the first layer began and behind every layer.
        seen: keys that the attention of the layer under way has been given already.
        compared: parts of the keys of the layer under way, (images, tokens, dim), if it merges.
        place: where the tokens of the layer under way go, if it merges, and how many are left.

    Raises:
        Unprunable: if pictures of that size cannot be merged.
    """

    def __init__(self, tower: EncoderMerging, depth: int, rows: Tensor, protected: int) -> None:
        images, tokens, _ = rows.shape
        self.tower, self.protected = tower, protected
        self._plan(depth, tokens - protected)
        self.source = torch.arange(tokens, device=rows.device).expand(images, tokens)
        self.sizes = torch.ones(images, tokens, device=rows.device)
        self.sources: list[Tensor] = []
        self.seen = 0
        self.compared: list[Tensor] = []
        self.place: tuple[Tensor, int] | None = None

    def _plan(self, depth: int, patches: int) -> None:
        self.plan, self.entered = self.tower.plan(depth, patches), list[int]()

    @property
    def merged(self) -> bool:
        """Whether some token stands for several."""
        return self.sizes.shape[1] < self.source.shape[1]

    def merges(self, layer: int) -> bool:
        """Whether patches merge in a layer."""
        return layer in self.plan

    def rows(self, states: Tensor) -> Tensor:
        """The encoder's states as (images, tokens, dim)."""
        return states

    def back(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows

    def check(self, layer: int, kwargs: dict[str, Any]) -> None:
        """Raise `Unprunable` if a layer is given other arguments than were foreseen."""

    def enter(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer begins with what is left; its arguments by name, and those that it is to have instead."""
        self.seen = 0
        if layer == 0:
            self.sources.append(self.source)
        self.count()
        return kwargs

    def count(self) -> None:
        """Take down how many tokens of a picture enter a layer."""
        self.entered.append(self.sizes.shape[1])

    def find(self, layer: int, compared: Tensor) -> tuple[Tensor, int]:
        """Where tokens go in a layer that merges, long (images, tokens), and how many are left.

        Args:
            layer: its number.
            compared: (images, tokens, dim).
        """
        count = self.plan[layer]
        return self.tower.assign(compared, count, self.protected), count + self.protected

    def weights(self, keys: int) -> Tensor:
        """What is added to the logits of the next keys: float32 (images, keys)."""
        return self.sizes[:, self.seen : self.seen + keys].log()

    def fold(self, rows: Tensor, place: Tensor, count: int) -> Tensor:
        """Merge, for good: (images, count, dim)."""
        folded = merge_groups(rows, place, count, self.sizes)
        self.sizes, self.source = merged_sizes(self.sizes, place, count), place.gather(1, self.source)
        return folded

    def records(self) -> list[EncoderRun]:
        """For the report."""
        return [EncoderRun(self.source.shape[1], self.entered)]
