"""More families whose pictures keep their own shape."""

import torch
import transformers as tf

import tiny_models as tiny
from family_cases.base import (
    END,
    IMAGE,
    START,
    VIDEO,
    VISION,
    Shot,
    Specimen,
    ahead,
    behind,
    build,
    halfway,
    mark_types,
    noise,
)
from family_cases.qwen import (
    DEEPSTACK,
    GRIDS,
    IDS,
    LATE,
    MROPE,
    RENUMBER,
    TOWER,
    mistral_shot,
    qwen3_tower,
    shot,
    timed_video,
    video,
)

PATCHES = {**VISION, "patch_size": 4}
SOUND = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "output_dim": 64}


def paddleocr_vl(attention):
    config = tf.PaddleOCRVLConfig(
        text_config=tiny.sizes(rope_parameters=MROPE),
        vision_config={**PATCHES, "spatial_merge_size": 2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return build(tf.PaddleOCRVLForConditionalGeneration, config, attention)


def stacked(number):
    """Patches as pictures of their own."""
    rows, cols = GRIDS[number % 3]
    return Shot(
        shot(number).ids,
        {"pixel_values": noise(number, rows * cols, 3, 4, 4), "image_grid_thw": torch.tensor([[1, rows, cols]])},
    )


def hunyuan_vl(attention):
    config = tf.HunYuanVLConfig(
        text_config=tiny.sizes(
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]}
        ),
        vision_config={**PATCHES, "spatial_merge_size": 2, "text_hidden_size": 64, "num_channels": 3},
        image_token_id=IMAGE,
        image_start_token_id=START,
        image_end_token_id=END,
    )
    return build(tf.HunYuanVLForConditionalGeneration, config, attention)


def framed(number):
    """A placeholder more at the end of every row, at the begin and at the end."""
    rows, cols = GRIDS[number % 3]
    return Shot(
        [START, *[IMAGE] * (rows // 2 * (cols // 2 + 1) + 2), END],
        {"pixel_values": noise(number, rows * cols, 48), "image_grid_thw": torch.tensor([[1, rows, cols]])},
    )


def exaone4_5(attention):
    config = tf.Exaone4_5_Config(
        text_config=tf.Exaone4Config(
            **tiny.sizes(
                sliding_window=24,
                layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2,
                num_hidden_layers=8,
            )
        ),
        vision_config={**TOWER, "window_size": 16, "fullatt_block_indexes": [1], "num_key_value_heads": 1},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return build(tf.Exaone4_5_ForConditionalGeneration, config, attention)


def lighton_ocr(attention):
    config = tf.LightOnOcrConfig(
        vision_config=tf.PixtralVisionConfig(**VISION),
        text_config=tiny.text_config("qwen3"),
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )
    return build(tf.LightOnOcrForConditionalGeneration, config, attention)


def qwen2_5_omni(attention):
    config = tf.Qwen2_5OmniThinkerConfig(
        text_config=tiny.sizes(rope_parameters=MROPE),
        vision_config={**TOWER, "window_size": 16, "fullatt_block_indexes": [1]},
        audio_config=SOUND,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=298,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return build(tf.Qwen2_5OmniThinkerForConditionalGeneration, config, attention)


def qwen3_omni(attention):
    config = tf.Qwen3OmniMoeThinkerConfig(
        text_config=tiny.sizes(
            rope_parameters={**MROPE, "mrope_interleaved": True},
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
        ),
        vision_config=qwen3_tower(),
        audio_config=SOUND,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=298,
        vision_start_token_id=START,
    )
    return build(tf.Qwen3OmniMoeThinkerForConditionalGeneration, config, attention)


def lfm3_vl(attention):
    config = tf.Lfm3VlConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "patch_size": 4,
            "layer_types": ["conv", "full_attention", "full_attention"],
        },
        text_config=tf.Lfm3Config(
            **tiny.sizes(num_hidden_layers=8, sliding_window=24),
            layer_types=["conv", "sliding_attention", "conv", "full_attention"] * 2,
        ),
        projector_hidden_size=48,
        tie_word_embeddings=False,
        **IDS,
    )
    return build(tf.Lfm3VlForConditionalGeneration, config, attention)


def hyperclovax(attention):
    config = tf.HyperCLOVAXVisionV2Config(
        text_config=tf.HyperCLOVAXConfig(**tiny.sizes()),
        vision_config=tf.models.qwen2_5_vl.Qwen2_5_VLVisionConfig(
            **{**TOWER, "window_size": 16, "fullatt_block_indexes": [1]}
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
    )
    return build(tf.HyperCLOVAXVisionV2ForConditionalGeneration, config, attention)


def cohere_compass(attention):
    config = tf.CohereCompassConfig(
        text_config=tiny.sizes(
            num_hidden_layers=8,
            sliding_window=24,
            layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2,
            rope_parameters={"sliding_attention": {**MROPE, "mrope_interleaved": True}, "full_attention": None},
        ),
        vision_config=qwen3_tower(),
        tie_word_embeddings=False,
        **IDS,
    )
    return build(tf.CohereCompassForConditionalGeneration, config, attention)


def timeless(number):
    """A video and the seconds that each of its frames stands for."""
    found = video(number)
    return Shot(found.ids, {**found.tensors, "video_second_per_grid": torch.tensor([1.0])}, VIDEO)


def unbroken(number):
    """Rows without anything between them."""
    found = mistral_shot(number)
    return Shot([word for word in found.ids if word == IMAGE], found.tensors)


class Counting(Specimen):
    """Of a model that numbers pictures over the whole batch: only the first prompt's are the same alone."""

    def prompts(self):
        return [self.prompt(0, 1), self.prompt(seed=1)]


NO_KEYS = {
    **behind(lambda at: at in (1, 3), LATE),
    "vscan-qwen": "no softmax attention",
    **RENUMBER,
}

SPECIMENS = [
    Specimen("paddleocr_vl", paddleocr_vl, stacked, finish=mark_types, refuses=RENUMBER),
    Counting("hunyuan_vl", hunyuan_vl, framed, finish=mark_types, refuses=RENUMBER),
    Specimen("exaone4_5", exaone4_5, shot, layers=(4, 6), static=False, refuses=ahead("no norm before their attention")),
    Specimen("exaone4_5-video", exaone4_5, video, layers=(4, 6), static=False, refuses=ahead("no norm before their attention")),
    Specimen("lfm3_vl", lfm3_vl, shot, layers=(4, 6), state=True, static=False, refuses=NO_KEYS),
    Specimen("lfm3_vl-video", lfm3_vl, timed_video, layers=(4, 6), state=True, static=False, refuses=NO_KEYS),
    Specimen("hyperclovax_vision_v2", hyperclovax, shot),
    Specimen("hyperclovax_vision_v2-video", hyperclovax, video),
    Specimen(
        "cohere_compass",
        cohere_compass,
        shot,
        finish=mark_types,
        layers=(4, 6),
        static=False,
        refuses=RENUMBER | DEEPSTACK | halfway() | {"ivc-prune": "no rotary position embedding"},
    ),
    Specimen(
        "cohere_compass-video",
        cohere_compass,
        timed_video,
        finish=mark_types,
        layers=(4, 6),
        static=False,
        refuses=RENUMBER | DEEPSTACK | halfway() | {"ivc-prune": "no rotary position embedding"},
    ),
    Specimen("lighton_ocr", lighton_ocr, unbroken),
    Specimen("qwen2_5_omni_thinker", qwen2_5_omni, shot, refuses=RENUMBER),
    Specimen("qwen2_5_omni_thinker-video", qwen2_5_omni, timeless, refuses=RENUMBER),
    Specimen("qwen3_omni_moe_thinker", qwen3_omni, shot, refuses=RENUMBER | DEEPSTACK),
    Specimen("qwen3_omni_moe_thinker-video", qwen3_omni, timeless, refuses=RENUMBER | DEEPSTACK),
]
