"""Models whose vision encoder cannot merge patches, with the words of the refusal."""

from method_cases import METHODS

PLACED = "packs pictures or gives its layers the places of patches"
UNMERGED = {
    PLACED: "cosmos3_edge ernie4_5_vl_moe lfm3_vl lighton_ocr llama4 mistral3 paddleocr_vl video_llama_3",
    "packs or masks these pictures": "hunyuan_vl lfm2_vl",
    "has 0 attention layers": "fast_vlm perception_lm",
    "states of its middle layers": (
        "cohere_compass cosmos3_omni granite_docling granite_docling-fine qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe"
    ),
    "no vision encoder under a known name": "video_llava",
}


def refuses_encoder_merging(name: str) -> dict[str, str]:
    """Return the methods that merge inside the vision encoder, if the model with this name refuses them."""
    messages = [message for message, names in UNMERGED.items() if name.removesuffix("-video") in names.split()]
    return {row: messages[0] for row, method in METHODS.items() if messages and method.schedule().encoder}
