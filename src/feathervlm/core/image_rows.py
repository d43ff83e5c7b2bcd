"""The images of a batch as rows, so that what concerns one image is computed for all images at once.

Candidates lie sample after sample, and a sample may have several images. Here every image is a row, padded to the
longest, so that a choice made along rows never crosses from one image to another.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates
from feathervlm.core.signals import Features, FeatureSource
from feathervlm.core.tensor_ops import to_float64, unit_vectors

BLOCK = 2**23
"""Number of token pairs compared at a time, which bounds the memory."""


@dataclass(eq=False)
class ImageRows:
    """The images of a batch as rows of shape (images, longest), where `images` is batch times images per sample.

    Args:
        tokens: The candidates.
    """

    tokens: Candidates

    @property
    def longest(self) -> int:
        """Number of tokens of the largest image, known without a device sync."""
        return self.tokens.geometry.longest

    @cached_property
    def exists(self) -> Tensor:
        """Bool tensor of shape (images, longest), False on padding."""
        place = torch.arange(self.longest, device=self.tokens.present.device)
        return (place < self.tokens.original()[..., None]).flatten(0, 1)

    @cached_property
    def _index(self) -> Tensor:
        """Visual token of every place, long (batch, images * longest); padding has the index one after the last."""
        sizes = self.tokens.original()
        place = torch.arange(self.longest, device=sizes.device)
        index = (sizes.cumsum(1) - sizes)[..., None] + place
        width = self.tokens.present.shape[1]
        return torch.where(place < sizes[..., None], index, width).flatten(1)

    @property
    def _rows_are_samples(self) -> bool:
        """Whether every sample has at most one image, so that nothing has to be moved."""
        return self.tokens.geometry.images == 1

    @cached_property
    def present(self) -> Tensor:
        """Bool tensor of shape (images, longest), the tokens that enter the stage."""
        return self.mark(self.tokens.present)

    def take(self, values: Tensor) -> Tensor:
        """Return values (batch, visual, ...) as rows (images, longest, ...); padding holds any value."""
        if self._rows_are_samples:
            return values
        index = self._index.clamp(max=values.shape[1] - 1)
        index = index[(...,) + (None,) * (values.dim() - 2)].expand(*index.shape, *values.shape[2:])
        return values.gather(1, index).view(-1, self.longest, *values.shape[2:])

    def mark(self, chosen: Tensor) -> Tensor:
        """Return a choice, bool (batch, visual), as rows (images, longest); padding is False."""
        return self.take(chosen) & self.exists

    def put(self, values: Tensor) -> Tensor:
        """Return rows (images, longest) as (batch, visual), with zeros where no token exists; the inverse of `take`."""
        if self._rows_are_samples:
            return values
        batch, width = self.tokens.present.shape
        flat = values.new_zeros(batch, width + 1)
        return flat.scatter(1, self._index, values.view(batch, -1))[:, :width]

    def directions(self, source: FeatureSource) -> Tensor:
        """Return unit vectors of the features, float64 (images, longest, dim); zeros for absent tokens."""
        return unit_vectors(self.take(self.tokens.signals.read(Features(source))), self.present)

    def vectors(self, source: FeatureSource) -> Tensor:
        """Return the features, float64 (images, longest, dim); zeros for absent tokens."""
        return to_float64(self.take(self.tokens.signals.read(Features(source))), self.present)
