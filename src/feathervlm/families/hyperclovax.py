"""HyperCLOVA X SEED Think: Qwen2.5-VL's encoder and geometry, one position per token."""

from feathervlm.families.qwen2_5_vl import Qwen25VL


class HyperClovaX(Qwen25VL):
    """`HyperCLOVAXVisionV2ForConditionalGeneration`."""

    title = "HyperCLOVA X SEED Think"
    model_types = ("hyperclovax_vision_v2",)
