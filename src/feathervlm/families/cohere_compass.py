"""Cohere Compass (North Vision): Qwen3-VL's geometry and added features before Cohere's decoder.

Layers of a kind for which the config names no rotation do not rotate, so scores with and without RoPE are the same
there. Only layers of full attention see the whole picture, so a criterion reads the nearest one before its stage.
"""

from feathervlm.families.qwen3_vl import Qwen3VL


class CohereCompass(Qwen3VL):
    """`CohereCompassForConditionalGeneration`."""

    title = "Cohere Compass"
    model_types = ("cohere_compass",)
    decoder = "sliding windows between full layers; features added after the first layers"
    caches = ("dynamic",)
