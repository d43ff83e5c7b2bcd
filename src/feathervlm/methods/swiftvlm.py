"""SwiftVLM: few tokens run, the means of the others run beside them, and every stage chooses among all tokens."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Keep, LastTokenAttention, Layer, Schedule, Stage, Top, check_keep, check_layers
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class SwiftVLM(Method):
    """Choose among all tokens at every stage; meanwhile the means of groups run in place of the others.

    A stage is scored with its own layer: attention of the last prompt token to every visual token, mean over heads.
    Tokens that are not chosen wait in groups of similar states, whose means run on. Before the next stage every waiting
    token is given the change that the mean of its group has had. At the last stage the others are dropped.

    Paper and code: the authors' code is not public. The layers are theirs for LLaVA-1.5, where they choose them by the
    accuracy that each layer's own choice of tokens keeps. How many tokens each stage keeps and how groups form are not
    given; here every stage keeps the same number, and groups form around density peaks.

    Args:
        layers: The layers before which tokens are chosen.
        keep: Fraction or number of visual tokens that run after each stage, groups aside.
        groups: Number of groups of an image, or fraction of its tokens.
    """

    name: ClassVar[str] = "swiftvlm"
    paper: ClassVar[str] = "2602.03134"

    layers: tuple[Layer, ...] = (3 / 32, 11 / 32, 15 / 32)
    keep: Keep = 0.25
    groups: Keep = 18

    def schedule(self) -> Schedule:
        check_keep(self.keep)
        check_keep(self.groups, "groups")
        check_layers(self.layers, "3+11+15")
        select = Top(LastTokenAttention(layer="K"), self.keep)
        *waiting, last = self.layers
        stages = [Stage(layer, select, leave="wait", update="group", groups=self.groups) for layer in waiting]
        return Schedule(*stages, Stage(last, select))
