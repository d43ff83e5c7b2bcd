"""Images as rows: what is chosen for each image alone is computed for all images of a batch at once.

Candidates lie sample after sample, and a sample may have several images. Here every image is a row, padded to the
longest, so that a choice made along rows can never cross from one image to another. Knows no criterion.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from feathervlm.core.candidates import Candidates
from feathervlm.core.signals import Features, FeatureSource
from feathervlm.core.tensor_ops import widened

BLOCK = 2**23
"""Pairs of tokens compared at a time, which bounds the memory."""


@dataclass(eq=False)
class ImageRows:
    """The images of a batch as rows (images, longest), `images` being batch times images per sample.

    Args:
        tokens: the candidates.
    """

    tokens: Candidates

    @property
    def longest(self) -> int:
        """Tokens of the largest image, known without asking the device."""
        return self.tokens.geometry.longest

    @cached_property
    def exists(self) -> Tensor:
        """Bool (images, longest), True where the image has that many tokens."""
        place = torch.arange(self.longest, device=self.tokens.present.device)
        return (place < self.tokens.original()[..., None]).flatten(0, 1)

    @cached_property
    def _index(self) -> Tensor:
        """Long (batch, images * longest): the visual token of every place, one behind the last for padding."""
        sizes = self.tokens.original()
        place = torch.arange(self.longest, device=sizes.device)
        index = (sizes.cumsum(1) - sizes)[..., None] + place
        width = self.tokens.present.shape[1]
        return torch.where(place < sizes[..., None], index, width).flatten(1)

    @property
    def _alone(self) -> bool:
        """Whether rows are samples, so that nothing need be moved."""
        return self.tokens.geometry.images == 1

    @cached_property
    def present(self) -> Tensor:
        """Bool (images, longest), the tokens that are still there."""
        return self.mark(self.tokens.present)

    def take(self, values: Tensor) -> Tensor:
        """Values (batch, visual, ...) as rows (images, longest, ...); padding holds any value."""
        if self._alone:
            return values
        index = self._index.clamp(max=values.shape[1] - 1)
        index = index[(...,) + (None,) * (values.dim() - 2)].expand(*index.shape, *values.shape[2:])
        return values.gather(1, index).view(-1, self.longest, *values.shape[2:])

    def mark(self, chosen: Tensor) -> Tensor:
        """A choice, bool (batch, visual), as rows (images, longest): False on padding."""
        return self.take(chosen) & self.exists

    def put(self, values: Tensor) -> Tensor:
        """The inverse of `take`: values (images, longest) as (batch, visual), zeros where no token exists."""
        if self._alone:
            return values
        batch, width = self.tokens.present.shape
        flat = values.new_zeros(batch, width + 1)
        return flat.scatter(1, self._index, values.view(batch, -1))[:, :width]

    def directions(self, source: FeatureSource) -> Tensor:
        """Features of length one, (images, longest, dim) in float64; zeros for absent tokens.

        Float64 and what `cosines` makes of it keep equal pairs equal, whatever order a matrix product sums in: ties
        are then the same ties in any batch. MPS has no float64 and makes do with float32.
        """
        return torch.nn.functional.normalize(self.vectors(source), dim=-1)

    def vectors(self, source: FeatureSource) -> Tensor:
        """Features, (images, longest, dim) in float64; zeros for absent tokens."""
        return widened(self.take(self.tokens.signals.read(Features(source))), self.present)
