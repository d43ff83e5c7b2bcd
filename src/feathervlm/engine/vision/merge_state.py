"""Where the patches have gone in one run of a vision encoder that merges.

Here pictures are rows of a batch and keep the same number of patches; in `feathervlm.engine.vision.packed` they follow
one another in a single row.
"""

from typing import Any

import torch
from torch import Tensor

from feathervlm.core.encoder.base import EncoderMerging
from feathervlm.core.encoder.grouping import merge_groups, merged_sizes
from feathervlm.engine.report.records import EncoderRun


class MergeState:
    """The state of one run of the encoder.

    Args:
        merging: The merging to apply.
        depth: Number of layers of the encoder.
        rows: States that enter the first layer, of shape (images, tokens, dim).
        protected: Number of tokens before the patches ([CLS]).

    Attributes:
        source: Current token that each original token was merged into, long (images, tokens).
        sizes: Number of original tokens that each current token stands for, float32 (images, current tokens).
        entered: Number of tokens of a picture that entered each layer.
        sources: `source` before the first layer and after every layer.
        seen: Number of keys that the attention of the current layer has received so far.
        compared: Parts of the keys of the current layer, (images, tokens, dim), if it merges.
        place: Where the tokens of the current layer go, if it merges, and how many remain.

    Raises:
        Unprunable: If pictures of that size cannot be merged.
    """

    def __init__(self, merging: EncoderMerging, depth: int, rows: Tensor, protected: int) -> None:
        images, tokens, _ = rows.shape
        self.merging, self.protected = merging, protected
        self._plan(depth, tokens - protected)
        self.source = torch.arange(tokens, device=rows.device).expand(images, tokens)
        self.sizes = torch.ones(images, tokens, device=rows.device)
        self.sources: list[Tensor] = []
        self.seen = 0
        self.compared: list[Tensor] = []
        self.place: tuple[Tensor, int] | None = None

    def _plan(self, depth: int, patches: int) -> None:
        self.plan, self.entered = self.merging.plan(depth, patches), list[int]()

    @property
    def merged(self) -> bool:
        """Whether some token stands for several."""
        return self.sizes.shape[1] < self.source.shape[1]

    def merges(self, layer: int) -> bool:
        """Return whether patches merge in a layer."""
        return layer in self.plan

    def move(self, device: torch.device) -> None:
        """Continue on a device, for the layers of an encoder may be on several."""
        self.source, self.sizes = self.source.to(device), self.sizes.to(device)

    def rows(self, states: Tensor) -> Tensor:
        """Return the encoder's states as (images, tokens, dim), and continue on their device."""
        self.move(states.device)
        return states

    def back(self, rows: Tensor) -> Tensor:
        """Return rows as the encoder's states, the inverse of `rows`."""
        return rows

    def check(self, layer: int, kwargs: dict[str, Any]) -> None:
        """Raise `Unprunable` if the arguments of a layer are not the expected ones."""

    def enter(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Begin a layer.

        Args:
            layer: Index of the layer.
            kwargs: Its arguments by name.

        Returns:
            The arguments for the current tokens.
        """
        self.seen = 0
        if layer == 0:
            self.sources.append(self.source)
        self.count()
        return kwargs

    def count(self) -> None:
        """Record how many tokens of a picture enter a layer."""
        self.entered.append(self.sizes.shape[1])

    def find(self, layer: int, compared: Tensor) -> tuple[Tensor, int]:
        """Return where the tokens of a layer that merges go, long (images, tokens), and how many remain.

        Args:
            layer: Index of the layer.
            compared: Vectors to compare, of shape (images, tokens, dim).
        """
        count = self.plan[layer]
        self.move(compared.device)
        return self.merging.assign(compared, count, self.protected), count + self.protected

    def weights(self, keys: int) -> Tensor:
        """Return what is added to the logits of the next keys, float32 (images, keys)."""
        return self.sizes[:, self.seen : self.seen + keys].log()

    def merge(self, rows: Tensor, place: Tensor, count: int) -> Tensor:
        """Merge the tokens and keep the result: states of shape (images, count, dim)."""
        merged = merge_groups(rows, place, count, self.sizes)
        self.sizes, self.source = merged_sizes(self.sizes, place, count), place.gather(1, self.source)
        return merged

    def records(self) -> list[EncoderRun]:
        """Return the run for the report."""
        return [EncoderRun(self.source.shape[1], self.entered)]
