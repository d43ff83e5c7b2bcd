"""Qwen2.5-VL: Qwen2-VL with windows in its vision tower, which undoes their order before the decoder sees it."""

from feathervlm.families.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """`Qwen2_5_VLForConditionalGeneration`."""

    title = "Qwen2.5-VL"
    model_types = ("qwen2_5_vl",)
