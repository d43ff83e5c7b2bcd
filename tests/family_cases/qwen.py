"""Families whose pictures keep their own shape and come as rows of flattened patches."""

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
    mark_types,
    merging,
    noise,
    renumbering,
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


def shot(number):
    rows, cols = GRIDS[number % 3]
    return Shot(
        [START, *[IMAGE] * (rows * cols // 4), END],
        {
            "pixel_values": noise(number, rows * cols, 3 * 2 * 4 * 4),
            "image_grid_thw": torch.tensor([[1, rows, cols]]),
        },
    )


def video(number):
    rows, cols = GRIDS[number % 3]
    return Shot(
        [START, *[VIDEO] * (FRAMES * rows * cols // 4), END],
        {
            "pixel_values_videos": noise(number, FRAMES * rows * cols, 3 * 2 * 4 * 4),
            "video_grid_thw": torch.tensor([[FRAMES, rows, cols]]),
        },
        VIDEO,
    )


def timed_video(number):
    """Each frame stands alone, behind the time at which it was taken."""
    found = video(number)
    frame = [START, *[VIDEO] * (found.ids.count(VIDEO) // FRAMES), END]
    return Shot([token for time in range(FRAMES) for token in (20 + time, *frame)], found.tensors, VIDEO)


def framed_video(number):
    """Frames in image placeholders, each between its marks, all between those of a video."""
    found = video(number)
    frame = [START, *[IMAGE] * (found.ids.count(VIDEO) // FRAMES), END]
    return Shot([294, *frame * FRAMES, 295], found.tensors)


def mark_framed(inputs, extra):
    ids = inputs["input_ids"]
    inside = (ids == 294).cumsum(1) > (ids == 295).cumsum(1)
    return {**inputs, "mm_token_type_ids": (ids == IMAGE).long() * (1 + inside.long())}


def paired_video(number):
    """Two frames make one."""
    rows, cols = GRIDS[number % 3]
    pixels = noise(number, 4 * rows * cols, 3 * 4 * 4)
    return Shot(
        [START, *[VIDEO] * (2 * rows * cols // 4), END],
        {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[4, rows, cols]])},
        VIDEO,
    )


def llama_video(number):
    rows, cols = GRIDS[number % 3]
    return Shot(
        [VIDEO] * (FRAMES * rows * cols // 4),
        {
            "pixel_values_videos": noise(number, FRAMES * rows * cols, 3 * 4 * 4),
            "video_grid_thw": torch.tensor([[FRAMES, rows, cols]]),
            "video_merge_sizes": torch.tensor([2]),
        },
        VIDEO,
    )


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


def glm4v(attention):
    config = tf.Glm4vConfig(
        text_config=tiny.sizes(
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        ),
        vision_config={**TOWER, "image_size": 48},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=294,
        video_end_token_id=295,
    )
    return build(tf.Glm4vForConditionalGeneration, config, attention)


def ernie(attention):
    config = tf.Ernie4_5_VLMoeConfig(
        text_config=tiny.sizes(
            moe_intermediate_size=[32, 32],
            moe_num_experts=4,
            moe_k=2,
            rope_parameters={"rope_type": "default", "mrope_section": [3, 3, 2], "rope_theta": 1e4},
        ),
        vision_config={**TOWER, "temporal_merge_size": 2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=294,
        video_end_token_id=295,
    )
    return build(tf.Ernie4_5_VLMoeForConditionalGeneration, config, attention)


def ernie_types(inputs, extra):
    inputs = mark_types(inputs, extra)
    return {**inputs, "moe_mm_token_type_ids": inputs["mm_token_type_ids"].clamp(max=1)}


def ernie_shot(number):
    found = shot(number)
    return Shot(found.ids, {**found.tensors, "pixel_values": found.tensors["pixel_values"][:, : 3 * 16]})


def video_llama_3(attention):
    config = tf.VideoLlama3Config(
        text_config=tiny.text_config("qwen2"),
        vision_config=tf.VideoLlama3VisionConfig(**{**VISION, "patch_size": 4}),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return build(tf.VideoLlama3ForConditionalGeneration, config, attention)


def llama_shot(number):
    rows, cols = GRIDS[number % 3]
    return Shot(
        [IMAGE] * (rows * cols // 4),
        {
            "pixel_values": noise(number, rows * cols, 3 * 4 * 4),
            "image_grid_thw": torch.tensor([[1, rows, cols]]),
            "image_merge_sizes": torch.tensor([2]),
        },
    )


def mistral3(attention):
    config = tf.Mistral3Config(
        vision_config=tf.PixtralVisionConfig(**VISION),
        text_config=tiny.text_config("mistral", sliding_window=None),
        image_token_id=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return build(tf.Mistral3ForConditionalGeneration, config, attention)


MISTRAL_SIZES = [(48, 48), (32, 48), (48, 16)]


def mistral_shot(number):
    height, width = MISTRAL_SIZES[number % 3]
    row = [*[IMAGE] * (width // 16), START]
    ids = [*(row * (height // 16))[:-1], END]
    pixels = torch.zeros(1, 3, 48, 48)
    pixels[..., :height, :width] = noise(number, 1, 3, height, width)
    return Shot(ids, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])})


RENUMBER = renumbering()
DEEPSTACK = merging(2)
LATE = "has full attention to score with; prune at layer 4 or later"
EARLY = behind(lambda at: at < 4, LATE)

SPECIMENS = [
    Specimen("qwen2_vl", qwen2_vl, shot, finish=mark_types, refuses=RENUMBER),
    Specimen("qwen2_vl-video", qwen2_vl, video, finish=mark_types, refuses=RENUMBER),
    Specimen("qwen2_5_vl", qwen2_5_vl, shot, finish=mark_types, refuses=RENUMBER),
    Specimen("qwen2_5_vl-video", qwen2_5_vl, video, finish=mark_types, refuses=RENUMBER),
    Specimen("qwen3_vl", qwen3_vl, shot, finish=mark_types, refuses=RENUMBER | DEEPSTACK),
    Specimen("qwen3_vl-video", qwen3_vl, timed_video, finish=mark_types, refuses=RENUMBER | DEEPSTACK),
    Specimen("qwen3_vl_moe", qwen3_vl_moe, shot, finish=mark_types, refuses=RENUMBER | DEEPSTACK),
    Specimen(
        "qwen3_5",
        qwen3_5,
        shot,
        finish=mark_types,
        layers=(4, 6),
        state=True,
        refuses={**EARLY, **ahead("no softmax attention")},
    ),
    Specimen(
        "qwen3_5-video",
        qwen3_5,
        timed_video,
        finish=mark_types,
        layers=(4, 6),
        state=True,
        refuses={**EARLY, **ahead("no softmax attention")},
    ),
    Specimen("glm4v-video", glm4v, framed_video, finish=mark_framed, refuses=RENUMBER),
    Specimen("ernie4_5_vl_moe-video", ernie, paired_video, finish=ernie_types, refuses=RENUMBER),
    Specimen("video_llama_3-video", video_llama_3, llama_video),
    Specimen("glm4v", glm4v, shot, finish=mark_types, refuses=RENUMBER),
    Specimen("ernie4_5_vl_moe", ernie, ernie_shot, finish=ernie_types, refuses=RENUMBER),
    Specimen("video_llama_3", video_llama_3, llama_shot),
    Specimen("mistral3", mistral3, mistral_shot),
]
