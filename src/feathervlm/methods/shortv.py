"""ShortV: visual tokens are frozen in the layers that change them least."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import KeepAll, KeepNone, Layer, Schedule, Stage, check_layers
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class ShortV(Method):
    """Freeze all visual tokens in some layers: text reads their keys and values, and no layer updates them.

    No token becomes invisible, and the cache stays as large as it was.

    Paper and code: ShortV freezes visual tokens in about 60 % of the layers, those with the least Layer Contribution:
    the divergence of the model's output when a layer's update of visual tokens is left out. Which layers these are
    depends on the model; the default, the last 60 % of the depth, is a choice of this project.

    Args:
        switches: Layers at which all visual tokens are frozen, run again, are frozen again, and so on; frozen first.
    """

    name: ClassVar[str] = "shortv"
    paper: ClassVar[str] = "2504.00502 (ICCV 2025), icip-cas/ShortV"
    budget_parameter: ClassVar[str | None] = None

    switches: tuple[Layer, ...] = (0.4,)

    def schedule(self) -> Schedule:
        check_layers(self.switches, "12+20+24", name="switches")
        stages = [
            Stage(layer, KeepNone(), leave="freeze") if number % 2 == 0 else Stage(layer, KeepAll())
            for number, layer in enumerate(self.switches)
        ]
        return Schedule(*stages)
