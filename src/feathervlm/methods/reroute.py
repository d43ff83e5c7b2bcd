"""Reroute: tokens that a stage does not choose wait for the next one."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import (
    Keep,
    LastTokenAttention,
    Layer,
    Schedule,
    Stage,
    Top,
    check_choice,
    check_keep,
    check_layers,
    part_of,
)
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class Reroute(Method):
    """Choose again at every stage among all tokens: those that were not chosen skip the layers up to the next stage.

    A stage is scored with its own layer: attention of the last prompt token to every visual token, softmax over all
    tokens, mean over heads. Tokens that skipped layers are compared with the states that they left with. Nothing is
    dropped for ever before the last stage, and a token has keys and values only in the layers that it ran in.

    Paper and code: the schedule `pyramid` keeps a, a, a/2, a/4 of the tokens at its four stages, with a = .4502, .2655
    and .1392 for averages of 192, 128 and 64 tokens on LLaVA-1.5; `flat` keeps a at each stage. The code decides for a
    whole batch by its first sample and runs unpruned when memory runs out; neither is done here.

    Args:
        layers: The four layers before which tokens are chosen.
        keep: Fraction or number of visual tokens that run after the first stage.
        form: `pyramid` or `flat`.
    """

    name: ClassVar[str] = "reroute"
    paper: ClassVar[str] = "2606.12412, elmma/mllm-reroute"

    layers: tuple[Layer, Layer, Layer, Layer] = (2 / 32, 7 / 32, 15 / 32, 23 / 32)
    keep: Keep = 0.2655
    form: Literal["pyramid", "flat"] = "pyramid"

    def schedule(self) -> Schedule:
        check_choice(self.form, ("pyramid", "flat"), "form")
        check_keep(self.keep)
        check_layers(self.layers, "2+7+15+23", count=4)
        score = LastTokenAttention(over="all", layer="K")
        half, quarter = (part_of(self.keep, share) for share in (0.5, 0.25))
        keeps = (self.keep, self.keep, half, quarter) if self.form == "pyramid" else (self.keep,) * 4
        *waiting, last = [(layer, Top(score, keep)) for layer, keep in zip(self.layers, keeps, strict=True)]
        return Schedule(*(Stage(*stage, leave="wait") for stage in waiting), Stage(*last))
