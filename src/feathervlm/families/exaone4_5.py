"""EXAONE 4.5: Qwen2.5-VL's geometry and encoder, one position per token, sliding windows between full layers.

Layers of full attention do not rotate, so their scores with and without RoPE are the same. Only they see the whole
picture, so a criterion reads the nearest one before its stage.
"""

from feathervlm.families.qwen2_5_vl import Qwen25VL


class Exaone45(Qwen25VL):
    """`Exaone4_5_ForConditionalGeneration`."""

    title = "EXAONE 4.5"
    model_types = ("exaone4_5",)
    decoder = "sliding windows, every fourth layer full"
    caches = ("dynamic",)
    text_types = ("exaone4", "exaone4_5")

    def rotates(self, layer: int) -> bool:
        """Return True for all layers of a model without sliding windows, else for its sliding windows."""
        module = self.decoder_view.attention_module(layer)
        return module.sliding_window is None or bool(module.is_sliding)
