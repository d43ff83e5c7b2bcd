"""GLM-4.1V, 4.5V, 4.6V and GLM-OCR: Qwen2-VL's geometry; frames of a video are marked like images.

Each frame of a video is between its own begin and end marks, in `<|image|>` placeholders.
"""

from feathervlm.core.boxes import BRACKETS, BoxFormat
from feathervlm.families.qwen2_vl import Qwen2VL


class Glm4V(Qwen2VL):
    """`Glm4vForConditionalGeneration`, `Glm4vMoeForConditionalGeneration` and their successors."""

    title = "GLM-V"
    model_types = ("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr")
    boxes = BoxFormat(
        name="thousandths, in brackets",
        prompt="Help me to locate {object} in the image and give me its bounding boxes.",
        notations=(
            "<|begin_of_box|>[[{}, {}, {}, {}]]<|end_of_box|>",
            BRACKETS,
            "( {} , {} , {} , {} )",
            "< {} , {} , {} , {} >",
        ),
        scale=1000,
    )
    """zai-org/GLM-V's README, Grounding: thousandths, in brackets of any style. GLM-OCR is not documented."""

    def token(self, modality: str) -> int:
        """Return the id of the image placeholder, which videos have, too."""
        return super().token("image")
