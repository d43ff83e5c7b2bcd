"""PaliGemma: one square grid before the text, and attention that sees the whole prompt in both directions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from feathervlm.core.boxes import BoxFormat
from feathervlm.engine.call import VisualInput
from feathervlm.families.llava import Llava
from feathervlm.families.runs import PlaceholderRun


class PaliGemma(Llava):
    """`PaliGemmaForConditionalGeneration`."""

    title = "PaliGemma"
    model_types = ("paligemma",)
    boxes = BoxFormat(
        name="1024 location tokens, top before left",
        prompt="detect {object}",
        notations=("<loc{}><loc{}><loc{}><loc{}>", "<loc{}> <loc{}> <loc{}> <loc{}>"),
        scale=1023,
        corners="yxyx",
        digits=4,
    )
    """ai.google.dev, PaliGemma prompt and system instructions; that token 1023 is the far edge (others divide by 1024):
    google-research/big_vision, big_vision/evaluators/proj/paligemma/transfers/segmentation.py."""

    def features(self, visual: VisualInput, output: Any, runs: Sequence[PlaceholderRun]) -> Tensor:
        """Return the states of the last layer."""
        states: Tensor = output.last_hidden_state
        return states.flatten(0, 1)
