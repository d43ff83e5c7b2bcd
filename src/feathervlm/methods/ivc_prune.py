"""IVC-Prune: positions that serve as coordinates, and the foreground; one set of tokens in every layer's cache."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Keep, Layer, RotaryPhase, Schedule, Stage, Top, ValueForeground, check_keep
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class IVCPrune(Method):
    """Keep positions that the rotation singles out, fill up with what has the text's values, cut every layer's cache.

    Rotary embedding turns the channels of a token by its position; where cosines, or sines, are large together, a
    position serves as an implicit visual coordinate. The best `share` of either stays whatever the picture shows.
    The rest is foreground: tokens whose values, which nothing rotates, are like those of the question and of the
    tokens that these point at first. The choice is made in the middle of the model, and what earlier layers have
    cached is cut to it, too: decoding sees the same tokens in every layer. The prefill of those layers costs as ever.

    Paper and code: the paper keeps 50 %, with 10 % by cosines and 10 % by sines; for LLaVA 5 % each and 20 %
    foreground: `ivc-prune:share=0.05,keep=0.28`. There the parts overlap and the total varies; here the foreground
    fills up to `keep`. Layers are found per model (of LLaVA-1.5 and Qwen2.5-VL-7B 16, Qwen2.5-VL-3B 22, Qwen2-VL-7B
    2). Their code takes each softmax of values over the whole prompt; here, as in the formula, it is over the image,
    and over each image by itself. Both average over key-value heads and ask with the text behind the last image. It
    leaves the cache of layer 0 whole; the paper, and we, cut all. It keeps the seeds in any case and rounds counts;
    ours truncate. Positions count from the prompt's first token, in later turns from that turn's. Without a cache
    (`use_cache=False`) early layers see all tokens at every step, and layers that carry a state keep theirs.

    Args:
        layer: tokens leave before this layer.
        keep: fraction or number of visual tokens kept, coordinates included.
        share: fraction or number of visual tokens kept by cosines, and as many by sines.
        seeds: fraction of an image's tokens that ask with the text the second time.
    """

    name: ClassVar[str] = "ivc-prune"
    paper: ClassVar[str] = "2602.03060 (ICLR 2026), FireRedTeam/IVC-Prune"

    layer: Layer = 1 / 2
    keep: Keep = 0.5
    share: Keep = 0.1
    seeds: float = 0.01

    def schedule(self) -> Schedule:
        """One stage."""
        check_keep(self.share, "share")
        coordinates = Top(RotaryPhase("cos"), self.share) | Top(RotaryPhase("sin"), self.share)
        return Schedule(Stage(self.layer, coordinates >> Top(ValueForeground(self.seeds), self.keep), cache="all"))
