"""Families with the pictures of Qwen2-VL and a decoder or an encoder of another kind."""

import torch
import transformers as tf

import tiny_models as tiny
from family_cases.base import (
    END,
    IMAGE,
    START,
    VIDEO,
    FamilyCase,
    PictureInput,
    add_token_types,
    build,
    refuses_mid_layer_states,
    refuses_next_layer_scores,
    refuses_previous_layer_scores,
)
from family_cases.qwen import (
    DEEPSTACK,
    IDS,
    LATE,
    MROPE,
    RENUMBER,
    TOWER,
    qwen3_tower,
    qwen_picture,
    timed_video,
    video,
)

SOUND = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "output_dim": 64}


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
    return PictureInput(found.ids, {**found.tensors, "video_second_per_grid": torch.tensor([1.0])}, VIDEO)


NO_KEYS = {
    **refuses_previous_layer_scores(lambda at: at in (1, 3), LATE),
    **refuses_next_layer_scores("no softmax attention", lambda at: at in (2, 4)),
    **RENUMBER,
}

FAMILY_CASES = [
    FamilyCase(
        "exaone4_5",
        exaone4_5,
        qwen_picture,
        layers=(4, 6),
        static=False,
        refuses=refuses_next_layer_scores("no norm before their attention"),
    ),
    FamilyCase(
        "exaone4_5-video",
        exaone4_5,
        video,
        layers=(4, 6),
        static=False,
        refuses=refuses_next_layer_scores("no norm before their attention"),
    ),
    FamilyCase("lfm3_vl", lfm3_vl, qwen_picture, layers=(4, 6), state=True, static=False, refuses=NO_KEYS),
    FamilyCase("lfm3_vl-video", lfm3_vl, timed_video, layers=(4, 6), state=True, static=False, refuses=NO_KEYS),
    FamilyCase("hyperclovax_vision_v2", hyperclovax, qwen_picture),
    FamilyCase("hyperclovax_vision_v2-video", hyperclovax, video),
    FamilyCase(
        "cohere_compass",
        cohere_compass,
        qwen_picture,
        finish=add_token_types,
        layers=(4, 6),
        static=False,
        refuses=RENUMBER | DEEPSTACK | refuses_mid_layer_states() | {"ivc-prune": "no rotary position embedding"},
    ),
    FamilyCase(
        "cohere_compass-video",
        cohere_compass,
        timed_video,
        finish=add_token_types,
        layers=(4, 6),
        static=False,
        refuses=RENUMBER | DEEPSTACK | refuses_mid_layer_states() | {"ivc-prune": "no rotary position embedding"},
    ),
    FamilyCase("qwen2_5_omni_thinker", qwen2_5_omni, qwen_picture, refuses=RENUMBER),
    FamilyCase("qwen2_5_omni_thinker-video", qwen2_5_omni, timeless, refuses=RENUMBER),
    FamilyCase("qwen3_omni_moe_thinker", qwen3_omni, qwen_picture, refuses=RENUMBER | DEEPSTACK),
    FamilyCase("qwen3_omni_moe_thinker-video", qwen3_omni, timeless, refuses=RENUMBER | DEEPSTACK),
]
