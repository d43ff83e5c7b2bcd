"""IVC-Prune: positions that serve as coordinates, and the foreground; one set of tokens in every layer's cache."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Keep, Layer, RotaryPhase, Schedule, Stage, Top, ValueForeground, check_keep
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class IVCPrune(Method):
    """Keep positions that the rotation singles out and the foreground of the question, and cut every layer's cache.

    Rotary embedding turns the channels of a token by its position; where all cosines, or all sines, are large, a
    position serves as an implicit visual coordinate. The best `share` of either stays whatever the picture shows. The
    remaining budget is foreground: tokens whose values, which are not rotated, are similar to those of the question and
    of the tokens that the question finds first. It selects in the middle of the model, and the caches of earlier layers
    are cut to the same tokens, so decoding sees the same tokens in every layer. The prefill of those layers is
    unchanged.

    Paper and code: the paper keeps 50 %, with 10 % by cosines and 10 % by sines; for LLaVA 5 % each and 20 %
    foreground: `ivc-prune:share=0.05,keep=0.28`. There the parts overlap and the total varies; here the foreground
    fills up to `keep`. Layers are chosen per model (16 for LLaVA-1.5 and Qwen2.5-VL-7B, 22 for Qwen2.5-VL-3B, 2 for
    Qwen2-VL-7B). Their code takes each softmax of values over the whole prompt; here, as in the formula, it is over the
    image, and over each image separately. Both average over key-value heads and use the text after the last image as
    queries. Their code leaves the cache of layer 0 whole; the paper, and this library, cut all. It keeps the seeds in
    any case and rounds counts; here they are truncated. Positions are counted from the prompt's first token, in later
    turns from that turn's. Without a cache (`use_cache=False`) early layers see all tokens at every step, and layers
    with a state keep theirs.

    Args:
        layer: Tokens leave before this layer.
        keep: Fraction or number of visual tokens kept, coordinates included.
        share: Fraction or number of visual tokens kept by cosines, and as many by sines.
        seeds: Fraction of an image's tokens that are queries together with the text the second time.
    """

    name: ClassVar[str] = "ivc-prune"
    paper: ClassVar[str] = "2602.03060 (ICLR 2026), FireRedTeam/IVC-Prune"

    layer: Layer = 1 / 2
    keep: Keep = 0.5
    share: Keep = 0.1
    seeds: float = 0.01

    def schedule(self) -> Schedule:
        check_keep(self.share, "share")
        coordinates = Top(RotaryPhase("cos"), self.share) | Top(RotaryPhase("sin"), self.share)
        return Schedule(Stage(self.layer, coordinates >> Top(ValueForeground(self.seeds), self.keep), cache="all"))
