"""Qwen2-VL, 2.5, 3 and 3.5, whose pictures keep their own shape and come as rows of flattened patches."""

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
    random_pixels,
    refuses_merging_up_to,
    refuses_next_layer_scores,
    refuses_previous_layer_scores,
    refuses_renumbering,
)

GRIDS = [(12, 12), (8, 16), (16, 6)]
FRAMES = 3
TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 48,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def qwen_picture(number):
    rows, cols = GRIDS[number % 3]
    return PictureInput(
        [START, *[IMAGE] * (rows * cols // 4), END],
        {
            "pixel_values": random_pixels(number, rows * cols, 3 * 2 * 4 * 4),
            "image_grid_thw": torch.tensor([[1, rows, cols]]),
        },
    )


def video(number):
    rows, cols = GRIDS[number % 3]
    return PictureInput(
        [START, *[VIDEO] * (FRAMES * rows * cols // 4), END],
        {
            "pixel_values_videos": random_pixels(number, FRAMES * rows * cols, 3 * 2 * 4 * 4),
            "video_grid_thw": torch.tensor([[FRAMES, rows, cols]]),
        },
        VIDEO,
    )


def timed_video(number):
    """Each frame stands alone, after the time at which it was taken."""
    found = video(number)
    frame = [START, *[VIDEO] * (found.ids.count(VIDEO) // FRAMES), END]
    return PictureInput([token for time in range(FRAMES) for token in (20 + time, *frame)], found.tensors, VIDEO)


def qwen2_vl(attention):
    tower = {key: value for key, value in TOWER.items() if key not in ("out_hidden_size", "intermediate_size")}
    config = tf.Qwen2VLConfig(
        text_config=tiny.sizes(rope_parameters=MROPE),
        vision_config={**tower, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        **IDS,
    )
    return build(tf.Qwen2VLForConditionalGeneration, config, attention)


def qwen2_5_vl(attention):
    config = tf.Qwen2_5_VLConfig(
        text_config=tiny.sizes(rope_parameters=MROPE),
        vision_config={**TOWER, "window_size": 16, "fullatt_block_indexes": [1]},
        **IDS,
    )
    return build(tf.Qwen2_5_VLForConditionalGeneration, config, attention)


def qwen3_tower():
    return {**TOWER, "depth": 4, "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64}


def qwen3_vl(attention):
    config = tf.Qwen3VLConfig(
        text_config=tiny.sizes(rope_parameters={**MROPE, "mrope_interleaved": True}),
        vision_config=qwen3_tower(),
        **IDS,
    )
    return build(tf.Qwen3VLForConditionalGeneration, config, attention)


def qwen3_vl_moe(attention):
    config = tf.Qwen3VLMoeConfig(
        text_config=tiny.sizes(
            rope_parameters={**MROPE, "mrope_interleaved": True},
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
        ),
        vision_config=qwen3_tower(),
        **IDS,
    )
    return build(tf.Qwen3VLMoeForConditionalGeneration, config, attention)


def qwen3_5(attention):
    config = tf.Qwen3_5Config(
        text_config=tiny.sizes(
            num_hidden_layers=8,
            rope_parameters={**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 2,
        ),
        vision_config={**TOWER, "num_position_embeddings": 64},
        **IDS,
    )
    return build(tf.Qwen3_5ForConditionalGeneration, config, attention)


RENUMBER = refuses_renumbering()
DEEPSTACK = refuses_merging_up_to(2)
LATE = "has full attention to score with; prune at layer 4 or later"
EARLY = refuses_previous_layer_scores(lambda at: at < 4, LATE)

FAMILY_CASES = [
    FamilyCase("qwen2_vl", qwen2_vl, qwen_picture, finish=add_token_types, refuses=RENUMBER),
    FamilyCase("qwen2_vl-video", qwen2_vl, video, finish=add_token_types, refuses=RENUMBER),
    FamilyCase("qwen2_5_vl", qwen2_5_vl, qwen_picture, finish=add_token_types, refuses=RENUMBER),
    FamilyCase("qwen2_5_vl-video", qwen2_5_vl, video, finish=add_token_types, refuses=RENUMBER),
    FamilyCase("qwen3_vl", qwen3_vl, qwen_picture, finish=add_token_types, refuses=RENUMBER | DEEPSTACK),
    FamilyCase("qwen3_vl-video", qwen3_vl, timed_video, finish=add_token_types, refuses=RENUMBER | DEEPSTACK),
    FamilyCase("qwen3_vl_moe", qwen3_vl_moe, qwen_picture, finish=add_token_types, refuses=RENUMBER | DEEPSTACK),
    FamilyCase(
        "qwen3_5",
        qwen3_5,
        qwen_picture,
        finish=add_token_types,
        layers=(4, 6),
        state=True,
        refuses={**refuses_next_layer_scores("no softmax attention", lambda at: at not in (3, 7)), **EARLY},
    ),
    FamilyCase(
        "qwen3_5-video",
        qwen3_5,
        timed_video,
        finish=add_token_types,
        layers=(4, 6),
        state=True,
        refuses={**refuses_next_layer_scores("no softmax attention", lambda at: at not in (3, 7)), **EARLY},
    ),
]
