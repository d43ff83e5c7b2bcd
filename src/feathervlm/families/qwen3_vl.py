"""Qwen3-VL, dense and mixture of experts: Qwen2-VL's geometry, with features added in early layers (DeepStack).

After each of its first layers the decoder adds features of a middle layer of the vision encoder to the visual tokens,
so hidden states have to be whole between those layers.
"""

from typing import ClassVar

from feathervlm.core.boxes import THOUSANDTHS_JSON
from feathervlm.families.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """`Qwen3VLForConditionalGeneration` and `Qwen3VLMoeForConditionalGeneration`."""

    title = "Qwen3-VL"
    decoder = "full attention; features added after the first layers"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    boxes = THOUSANDTHS_JSON

    @property
    def injected(self) -> int:
        """The last DeepStack layer."""
        return len(self.model.config.vision_config.deepstack_visual_indexes) - 1
