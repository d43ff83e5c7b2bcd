"""ToMe: the most similar patches merge inside the vision encoder, and the language model gets each group once."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import BipartiteMerging, OnePerGroup, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class ToMe(Method):
    """Merge the most similar patches inside the vision encoder, a few in every layer, and keep one token of each group.

    The encoder gets faster, too. Between attention and MLP half of the patches each pick the most similar of the other
    half, by keys; the best pairs become their mean, weighted by how many patches each stands for, and later layers
    attend to them as often. Text plays no part, [CLS] is left alone. Behind the encoder every patch gets the feature of
    its group, and of the equal tokens the first enters the language model, at its own position.

    Where a visual token is made of several patches (InternVL, Gemma 3, Idefics 3, Qwen2-VL), one stays if any of its
    patches is the first of a group: the encoder saves as much, the language model little.

    Paper and code: they merge in all layers; here the last one does not by default, as LLaVA takes its features before
    it. They give the number r that leaves in each layer, at most half of what is there; here r is the smallest that
    comes down to `keep`. Without a [CLS] token the code puts the tokens left of the picking half in order of their
    similarity; here they keep their own. Unfolding, and what the language model gets, are this library's. So is all of
    encoders that rotate keys and look at windows (Qwen2.5-VL): keys are compared as rotated, a merged patch is rotated
    as the first of its group, and only patches merge that share a window in each later layer. If these are too few, as
    many as can, and later layers catch up where they may.

    Args:
        keep: fraction of the patches that is left in the end.
        start: first layer of the vision encoder that merges, counted from 0, or a fraction of its depth.
        stop: last layer that merges; -2 is the last but one.
        proportional: attend to a merged token as often as it stands for patches.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "2210.09461 (ICLR 2023), facebookresearch/ToMe"

    keep: float = 0.5
    start: int | float = 0
    stop: int | float = -2
    proportional: bool = True

    def schedule(self) -> Schedule:
        """The encoder, and one stage at layer 0."""
        encoder = BipartiteMerging(self.keep, self.start, self.stop, self.proportional)
        return Schedule(Stage(0, OnePerGroup(self.keep)), encoder=encoder)
