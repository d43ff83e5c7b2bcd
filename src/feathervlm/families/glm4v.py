"""GLM-4.1V, 4.5V, 4.6V and GLM-OCR: Qwen2-VL's geometry; frames of a video are marked like images.

Each frame of a video stands between its own begin and end marks, in `<|image|>` placeholders.
"""

from feathervlm.families.qwen2_vl import Qwen2VL


class Glm4V(Qwen2VL):
    """`Glm4vForConditionalGeneration`, `Glm4vMoeForConditionalGeneration` and their successors."""

    title = "GLM-V"
    model_types = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")

    def token(self, modality: str) -> int:
        """The image placeholder, for videos too."""
        return super().token("image")
