"""Qwen2.5-Omni and Qwen3-Omni, the thinkers: Qwen2-VL's geometry; sound is not pruned.

If a video has sound, its tokens are in portions between the tokens of the sound, which count as text. Qwen3-Omni adds
features of middle layers of the vision encoder after the first decoder layers, as Qwen3-VL does.
"""

from feathervlm.families.qwen2_5_vl import Qwen25VL
from feathervlm.families.qwen3_vl import Qwen3VL


class Qwen25Omni(Qwen25VL):
    """`Qwen2_5OmniThinkerForConditionalGeneration`."""

    title = "Qwen2.5-Omni"
    model_types = ("qwen2_5_omni_thinker",)
    limits = "the thinker alone, which is what writes text"


class Qwen3Omni(Qwen3VL):
    """`Qwen3OmniMoeThinkerForConditionalGeneration`."""

    title = "Qwen3-Omni"
    model_types = ("qwen3_omni_moe_thinker",)
    limits = "the thinker alone, which is what writes text"
