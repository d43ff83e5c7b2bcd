"""ViP-LLaVA: LLaVA 1.5 whose projector reads five layers of its CLIP encoder at once.

The geometry is LLaVA's. Features of several layers have no single width, so criteria on vision features are refused.
"""

from feathervlm.core.boxes import FRACTIONS_OF_SQUARE
from feathervlm.families.llava import Llava


class VipLlava(Llava):
    """`VipLlavaForConditionalGeneration`."""

    title = "ViP-LLaVA"
    model_types = ("vipllava",)
    boxes = FRACTIONS_OF_SQUARE
    """WisconsinAIVision/ViP-LLaVA's README: LLaVA 1.5's instruction data, boxes included, is part of its own."""
