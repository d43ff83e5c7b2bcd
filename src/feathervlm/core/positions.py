"""Position policies: which position every token of a pruned sequence has.

A token that moves takes the row of the position tables that belonged to another position of the same input, its
place. Order, and with it causality, stays as it was. Knows nothing of rotations or of how tables are made.

`preserve`: every token keeps its position. `renumber`: places that became empty are closed, as some published methods
do; it costs localization. `shuffle`: the tokens of an image exchange their places at random, the control of arXiv
2412.13180, A4. `stretch`: the tokens that are left of an image spread over the places of the whole image (RPME of
arXiv 2602.02951).
"""

from typing import Literal

import torch
from torch import Tensor

from feathervlm.core.layout import Geometry
from feathervlm.core.tensor_ops import lexsort, seeded_uniform

Positions = Literal["preserve", "renumber", "shuffle", "stretch"]


def moved(policy: Positions, places: Tensor, visual: Tensor, geometry: Geometry, left: Tensor, seed: int = 0) -> Tensor:
    """The places after a stage.

    Args:
        policy: of the stage.
        places: long (batch, sequence), for every position of the input its place until now; at first its own.
        visual: long (batch, visual), position of every visual token.
        geometry: of these.
        left: bool (batch, visual), the tokens that are left.
        seed: of the permutation, where one is asked for.

    Returns:
        long (batch, sequence); tokens that are not left have any place.
    """
    if policy == "preserve":
        return places
    if policy == "renumber":
        return _closed(places, visual, geometry, left)
    now = places.gather(1, visual)
    then = _shuffled(now, geometry, left, seed) if policy == "shuffle" else _stretched(places, visual, geometry, left)
    return places.scatter(1, visual, torch.where(left, then, now))


def _closed(places: Tensor, visual: Tensor, geometry: Geometry, left: Tensor) -> Tensor:
    """Every place less the number of empty ones up to it."""
    sequence = places.shape[1]
    there = torch.ones_like(places, dtype=torch.bool).scatter(1, visual, left | ~geometry.exists)
    empty = torch.ones(len(places), sequence + 1, dtype=torch.bool, device=places.device)
    empty = empty.scatter(1, torch.where(there, places, sequence), False)[:, :sequence]
    return (places - empty.cumsum(1).gather(1, places)).clamp(min=0)


def _shuffled(now: Tensor, geometry: Geometry, left: Tensor, seed: int) -> Tensor:
    """The token with the n-th smallest draw of its image takes the place of the image's n-th token."""
    group = torch.where(left, geometry.image, geometry.images)
    return now.scatter(1, lexsort([group, seeded_uniform(left, seed)]), now.gather(1, lexsort([group])))


def _stretched(places: Tensor, visual: Tensor, geometry: Geometry, left: Tensor) -> Tensor:
    """Token I of an image of n takes the place of token ceil(I * (n - 1) / I_max), I_max the last of those left."""
    image = geometry.image
    index = torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
    sizes = visual.new_zeros(len(visual), geometry.images).scatter_add(1, image, geometry.exists.long())
    start = (sizes.cumsum(1) - sizes).gather(1, image)
    # Who has taken over another token's place counts as that one.
    number = torch.zeros_like(places).scatter(1, visual, index).gather(1, places.gather(1, visual)) - start
    number = torch.where(left, number, 0)
    last = torch.zeros_like(sizes).scatter_reduce(1, image, number, "amax").gather(1, image).clamp(min=1)
    spread = (number * (sizes.gather(1, image) - 1) + last - 1) // last
    return visual.gather(1, start + spread)
