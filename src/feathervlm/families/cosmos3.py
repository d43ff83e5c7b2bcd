"""Cosmos 3: Omni is Qwen3-VL under another name; Edge has its geometry without added features."""

from feathervlm.families.qwen2_vl import Qwen2VL
from feathervlm.families.qwen3_vl import Qwen3VL


class Cosmos3Omni(Qwen3VL):
    """`Cosmos3OmniForConditionalGeneration`, the part that writes text."""

    title = "Cosmos 3 Omni"
    model_types = ("cosmos3_omni",)


class Cosmos3Edge(Qwen2VL):
    """`Cosmos3EdgeForConditionalGeneration`, the part that writes text."""

    title = "Cosmos 3 Edge"
    model_types = ("cosmos3_edge",)
