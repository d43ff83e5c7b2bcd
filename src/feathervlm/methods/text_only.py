"""No image at all, a control."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import KeepNone, Schedule, Stage
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class TextOnly(Method):
    """Keep no visual token; the text keeps its original positions.

    What a benchmark still scores here can be guessed without the image (arXiv 2412.13180, Fig. 4).
    """

    name: ClassVar[str] = "text-only"
    paper: ClassVar[str] = "2412.13180 (ICCV 2025), Fig. 4"
    budget_parameter: ClassVar[str | None] = None

    def schedule(self) -> Schedule:
        return Schedule(Stage(0, KeepNone()))
