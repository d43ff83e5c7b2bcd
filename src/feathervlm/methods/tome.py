"""ToMe: merge the most similar patches inside the vision encoder, and keep each group once."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import BipartiteMerging, OnePerGroup, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class ToMe(Method):
    """Merge the most similar patches inside the vision encoder, a few in every layer, and keep one token of each group.

    Between attention and MLP half of the patches each pick the most similar patch of the other half, by keys; the best
    pairs become their mean, weighted by the number of patches that each stands for, and later layers attend to them as
    often. [CLS] is never merged, and text is not read. After the encoder every patch gets the feature of its group, and
    of the equal tokens the first enters the language model, at its own position. The encoder gets faster as well.

    Where a visual token consists of several patches (InternVL, Gemma 3, Idefics 3, Qwen2-VL), it stays if any of its
    patches is the first of a group: the encoder saves as much, the language model little.

    Paper and code: the authors merge in all layers; here the last one does not merge by default, because LLaVA takes
    its features before it. They set the number r of patches that leave in each layer, at most half of them; here r is
    the smallest number that reaches `keep`. Without a [CLS] token the code orders the remaining patches of the picking
    half by their similarity; here they keep their order. Expanding the groups, and what the language model gets, are
    this library's, and so is everything for encoders that rotate keys and attend within windows (Qwen2.5-VL): keys are
    compared as rotated, a merged patch is rotated as the first of its group, and only patches merge that share a window
    in each later layer. If these are too few, as many as possible merge, and later layers merge more where they can.

    Args:
        keep: Fraction of the patches that remain in the end.
        start: First layer of the vision encoder that merges, counted from 0, or a fraction of its depth.
        stop: Last layer that merges; -2 is the last but one.
        proportional: Whether layers attend to a merged token as often as it stands for patches.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "2210.09461 (ICLR 2023), facebookresearch/ToMe"

    keep: float = 0.5
    start: int | float = 0
    stop: int | float = -2
    proportional: bool = True

    def schedule(self) -> Schedule:
        encoder = BipartiteMerging(self.keep, self.start, self.stop, self.proportional)
        return Schedule(Stage(0, OnePerGroup(self.keep)), encoder=encoder)
