"""Qwen3.5, dense and mixture of experts: Qwen2-VL's geometry before a decoder of mostly linear attention.

Layers of linear attention run over the remaining tokens; only the few layers of full attention can score, so a
criterion reads the nearest one before its stage.
"""

from feathervlm.core.boxes import THOUSANDTHS_JSON
from feathervlm.families.qwen2_vl import Qwen2VL


class Qwen35(Qwen2VL):
    """`Qwen3_5ForConditionalGeneration` and `Qwen3_5MoeForConditionalGeneration`."""

    title = "Qwen3.5"
    decoder = "linear attention, every fourth layer full"
    model_types = ("qwen3_5", "qwen3_5_moe")
    boxes = THOUSANDTHS_JSON
    """QwenLM/Qwen3.8-Flash-Next#4: still 0 to 1000, according to a developer of its successor.
    The JSON is Qwen3-VL's."""
