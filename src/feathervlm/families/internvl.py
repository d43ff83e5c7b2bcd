"""InternVL 3 and GOT-OCR 2 in their transformers form: tiles one after the other without a mark, the overview last.

The number of tiles is the length of the run of placeholders over that of a tile; videos come as images, one per frame.
"""

from collections.abc import Sequence
from math import isqrt

from feathervlm.families.tiles import Span, Tiles


class InternVL(Tiles):
    """`InternVLForConditionalGeneration` and `GotOcr2ForConditionalGeneration`."""

    title = "InternVL, GOT-OCR 2"
    model_types = ("internvl", "got_ocr2")

    @property
    def side(self) -> int:
        """As many placeholders as the config says."""
        return isqrt(self.model.config.image_seq_length)

    def count(self, ids: Sequence[int], spans: Sequence[Span]) -> list[int]:
        """One run per image."""
        return [length // self.side**2 for _, length in spans]
