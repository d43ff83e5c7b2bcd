"""InternVL 3 and GOT-OCR 2 in their transformers form: tiles one after the other without a mark, the overview last.

The number of tiles is the length of the run of placeholders over the length of a tile. Videos are images, one per
frame.
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
    (for InternVL 3); internvl.readthedocs.io, Chat Data Format. GOT-OCR 2 is not documented."""

    @property
    def side(self) -> int:
        """Rows, and columns, of a tile, as the config says."""
        return isqrt(self.model.config.image_seq_length)

    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        return [length // self.side**2 for _, length in spans]

    def states(self, output: Any) -> Tensor:
        """Return the states of the layer that the config selects, without [CLS] if the encoder has one."""
        config = self.model.config
        if config.model_type == "got_ocr2":  # its encoder returns a map of features that has passed its neck
            raise Unprunable("GOT-OCR 2 has no patch features; use the projected ones (features=projected).")
        last = config.vision_feature_layer == -1
        states: Tensor = output.last_hidden_state if last else output.hidden_states[config.vision_feature_layer]
        return states[:, 1:] if config.vision_feature_select_strategy == "default" else states
