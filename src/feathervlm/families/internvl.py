"""InternVL 3 and GOT-OCR 2 in their transformers form: tiles one after the other without a mark, the overview last.

The number of tiles is the length of the run of placeholders over that of a tile; videos come as images, one per frame.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from feathervlm.core.boxes import BRACKETS, REGION, BoxFormat
from feathervlm.core.errors import Unprunable
from feathervlm.families.tiles import Span, Tiles


class InternVL(Tiles):
    """`InternVLForConditionalGeneration`, `GotOcr2ForConditionalGeneration`, `QianfanOCRForConditionalGeneration`."""

    title = "InternVL, GOT-OCR 2"
    model_types = ("internvl", "got_ocr2", "qianfan_ocr", "pp_chart2table")
    boxes = BoxFormat(
        name="thousandths, in brackets between tags",
        prompt=REGION + "<ref>{object}</ref>",
        notations=("<box>[[{}, {}, {}, {}]]</box>", BRACKETS),
        scale=1000,
    )
    """Thousandths of the picture, whatever its tiles: OpenGVLab/InternVL, internvl_chat/eval/refcoco, #227 and #1009
    (for InternVL 3); internvl.readthedocs.io, Chat Data Format. Nothing is said of GOT-OCR 2."""

    @property
    def side(self) -> int:
        """As many placeholders as the config says."""
        return isqrt(self.model.config.image_seq_length)

    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        """One run per image."""
        return [length // self.side**2 for _, length in spans]

    def states(self, output: Any) -> Tensor:
        """The selected layer, without [CLS] where the tower has one."""
        config = self.model.config
        if config.model_type == "got_ocr2":  # its tower gives a map of features, its neck already passed
            raise Unprunable("GOT-OCR 2 has no patch features; use the projected ones (features=projected).")
        last = config.vision_feature_layer == -1
        states: Tensor = output.last_hidden_state if last else output.hidden_states[config.vision_feature_layer]
        return states[:, 1:] if config.vision_feature_select_strategy == "default" else states
