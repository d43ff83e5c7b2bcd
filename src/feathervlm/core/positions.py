"""Position policies: which position every token of a pruned sequence has.

A token that moves takes the row of the position tables that belonged to another position of the same input, its place.
Order, and with it causality, is unchanged.

`preserve`: every token keeps its position. `renumber`: positions are renumbered without gaps, as some published methods
do; it costs localization. `shuffle`: the tokens of an image exchange their places at random, the control of arXiv
2412.13180, A4. `stretch`: the kept tokens of an image spread over the places of the whole image (RPME of arXiv
2602.02951).
"""

from typing import Literal

import torch
from torch import Tensor

from feathervlm.core.layout import Geometry
from feathervlm.core.tensor_ops import lexsort, seeded_uniform

Positions = Literal["preserve", "renumber", "shuffle", "stretch"]


def moved(policy: Positions, places: Tensor, visual: Tensor, geometry: Geometry, kept: Tensor, seed: int = 0) -> Tensor:
    """Return the places of all tokens after a stage.

    Args:
        policy: Position policy of the stage.
        places: long tensor of shape (batch, sequence), the place of every position of the input before the stage; at
            first its own.
        visual: long tensor of shape (batch, visual), the position of every visual token.
        geometry: Geometry of the visual tokens.
        kept: bool tensor of shape (batch, visual), the tokens that stay.
        seed: Seed of the permutation for `shuffle`.

    Returns:
        Long tensor of shape (batch, sequence); dropped tokens have any place.
    """
    if policy == "preserve":
        return places
    if policy == "renumber":
        return _closed(places, visual, geometry, kept)
    now = places.gather(1, visual)
    then = _shuffled(now, geometry, kept, seed) if policy == "shuffle" else _stretched(places, visual, geometry, kept)
    return places.scatter(1, visual, torch.where(kept, then, now))


def _closed(places: Tensor, visual: Tensor, geometry: Geometry, kept: Tensor) -> Tensor:
    """Reduce every place by the number of empty places before it."""
    sequence = places.shape[1]
    filled = torch.ones_like(places, dtype=torch.bool).scatter(1, visual, kept | ~geometry.exists)
    empty = torch.ones(len(places), sequence + 1, dtype=torch.bool, device=places.device)
    empty = empty.scatter(1, torch.where(filled, places, sequence), False)[:, :sequence]
    return (places - empty.cumsum(1).gather(1, places)).clamp(min=0)


def _shuffled(now: Tensor, geometry: Geometry, kept: Tensor, seed: int) -> Tensor:
    """Give the token with the n-th smallest random number of its image the place of the image's n-th token."""
    group = torch.where(kept, geometry.image, geometry.images)
    return now.scatter(1, lexsort([group, seeded_uniform(kept, seed)]), now.gather(1, lexsort([group])))


def _stretched(places: Tensor, visual: Tensor, geometry: Geometry, kept: Tensor) -> Tensor:
    """Give token I of an image of n the place of token ceil(I * (n - 1) / I_max), I_max being the last kept one."""
    image = geometry.image
    index = torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
    sizes = visual.new_zeros(len(visual), geometry.images).scatter_add(1, image, geometry.exists.long())
    start = (sizes.cumsum(1) - sizes).gather(1, image)
    # A token that has another token's place counts as that token.
    number = torch.zeros_like(places).scatter(1, visual, index).gather(1, places.gather(1, visual)) - start
    number = torch.where(kept, number, 0)
    last = torch.zeros_like(sizes).scatter_reduce(1, image, number, "amax").gather(1, image).clamp(min=1)
    spread = (number * (sizes.gather(1, image) - 1) + last - 1) // last
    return visual.gather(1, start + spread)
