"""LFM3-VL: Qwen2-VL's geometry before a decoder of short convolutions, sliding windows and full layers.

Only layers of full attention see the whole picture, so a criterion reads the nearest one before its stage.
"""

from feathervlm.families.qwen2_vl import Qwen2VL


class Lfm3VL(Qwen2VL):
    """`Lfm3VlForConditionalGeneration`."""

    title = "LFM3-VL"
    model_types = ("lfm3_vl",)
    decoder = "short convolutions and sliding windows, some layers full"
    caches = ("dynamic",)
