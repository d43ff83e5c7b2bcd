"""LVLM_CSP: means of clusters run first, then all tokens, then the best."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import (
    Keep,
    KeepAll,
    KeepNone,
    LastTokenAttention,
    Layer,
    Schedule,
    Stage,
    Top,
    check_keep,
    check_layers,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class LvlmCsp(Method):
    """Cluster, scatter, prune: means of clusters run in early layers, all tokens in the middle, the best ones later.

    In the early layers all tokens wait in groups of similar states, and only the means of the groups run. Then every
    token comes back with the change of its mean. After some layers the attention of the last prompt token prunes.

    Paper and code: written for reasoning segmentation; only the abstract could be read, so the layers, the clusters
    (here density peaks) and the score are choices of this project.

    Args:
        layers: Layers at which clusters form, tokens return, and tokens are dropped.
        groups: Number of clusters of an image, or fraction of its tokens.
        keep: Fraction or number of visual tokens kept at the last of the layers.
    """

    name: ClassVar[str] = "lvlm-csp"
    paper: ClassVar[str] = "2504.10854"

    layers: tuple[Layer, Layer, Layer] = (0, 8 / 32, 12 / 32)
    groups: Keep = 0.25
    keep: Keep = 0.25

    def schedule(self) -> Schedule:
        check_keep(self.keep)
        check_keep(self.groups, "groups")
        check_layers(self.layers, "0+8+12", count=3)
        cluster, scatter, prune = self.layers
        return Schedule(
            Stage(cluster, KeepNone(), leave="wait", update="group", groups=self.groups),
            Stage(scatter, KeepAll()),
            Stage(prune, Top(LastTokenAttention(), self.keep)),
        )
