"""PyramidDrop: pruning in several equal steps, in its authors' form and as in FEATHER's paper."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feathervlm.core import LastTokenAttention, Layer, Schedule, Stage, Top, check_choice, check_fraction, check_layers
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class PyramidDrop(Method):
    """Keep a constant share of the tokens at each of several layers, by the last text token's attention.

    Two forms share the name. `authors`: scored with the layer about to run, softmax over all keys, counts int(N *
    keep**stage) of the original N, positions renumbered. `baseline`, as in FEATHER's paper: scored with the layer
    before, softmax over the visual keys, int(n * keep) of the current n, positions preserved.

    Args:
        layers: Tokens leave before each of these layers.
        keep: Share kept at each stage.
        form: `authors` or `baseline`.
    """

    name: ClassVar[str] = "pyramiddrop"
    paper: ClassVar[str] = "2410.17247 (CVPR 2025), Cooperx521/PyramidDrop"

    layers: tuple[Layer, ...] = (0.25, 0.5, 0.75)
    keep: float = 0.5
    form: Literal["authors", "baseline"] = "authors"

    def schedule(self) -> Schedule:
        check_fraction(self.keep)
        check_choice(self.form, ("authors", "baseline"), "form")
        check_layers(self.layers, "8+16+24")
        if self.form == "baseline":
            attention = LastTokenAttention(rope=True, over="visual")
            return Schedule(*(Stage(layer, Top(attention, self.keep, of="current")) for layer in self.layers))
        attention = LastTokenAttention(rope=True, over="all", layer="K")
        return Schedule(
            *(
                Stage(layer, Top(attention, self.keep**step), positions="renumber")
                for step, layer in enumerate(self.layers, start=1)
            )
        )
