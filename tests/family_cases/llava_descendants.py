"""More descendants of LLaVA, and others with one square grid per picture."""

import torch
import transformers as tf

import tiny_models as tiny
from family_cases.base import (
    IMAGE,
    VIDEO,
    VISION,
    FamilyCase,
    PictureInput,
    build,
    random_pixels,
    refuses_encoder_signals,
)
from family_cases.llava import PINPOINTS, next_picture, plain_picture

FRAMES = 3


def video_llava(attention):
    config = tf.VideoLlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tiny.text_config(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return build(tf.VideoLlavaForConditionalGeneration, config, attention)


def whole_frames(number):
    """Every frame after one more placeholder."""
    return PictureInput(
        [VIDEO] * (FRAMES * 37), {"pixel_values_videos": random_pixels(number, 1, FRAMES, 3, 48, 48)}, VIDEO
    )


def llava_next_video(attention):
    config = tf.LlavaNextVideoConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tiny.text_config(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return build(tf.LlavaNextVideoForConditionalGeneration, config, attention)


def pooled_frames(number):
    return PictureInput(
        [VIDEO] * (FRAMES * 9), {"pixel_values_videos": random_pixels(number, 1, FRAMES, 3, 48, 48)}, VIDEO
    )


def deepseek_vl(attention):
    config = tf.DeepseekVLConfig(
        vision_config=tf.SiglipVisionConfig(**VISION), text_config=tiny.text_config(), image_token_id=IMAGE
    )
    return build(tf.DeepseekVLForConditionalGeneration, config, attention)


def deepseek_vl_hybrid(attention):
    sam = {"output_channels": 8, "global_attn_indexes": [1], "window_size": 2, "mlp_dim": 16}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 96, "patch_size": 8}
    config = tf.DeepseekVLHybridConfig(
        vision_config=tf.SiglipVisionConfig(**VISION),
        high_res_vision_config=tf.SamVisionConfig(**sam, **sizes),
        text_config=tiny.text_config(),
        image_token_id=IMAGE,
    )
    return build(tf.DeepseekVLHybridForConditionalGeneration, config, attention)


def seen_twice(number):
    """The picture for both towers."""
    found = plain_picture(number)
    fine = torch.nn.functional.interpolate(found.tensors["pixel_values"], (96, 96), mode="bilinear")
    return PictureInput(found.ids, {**found.tensors, "high_res_pixel_values": fine})


def janus(attention):
    config = tf.JanusConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 8,
            "projection_dim": 64,
            "num_image_tokens": 36,
            "mlp_ratio": 1.5,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "latent_channels": 32,
            "image_token_embed_dim": 64,
            "projection_dim": 64,
        },
        text_config=tiny.text_config(),
        image_token_id=IMAGE,
    )
    return build(tf.JanusForConditionalGeneration, config, attention)


TWO_TOWERS = refuses_encoder_signals("no vision encoder under a known name")

FAMILY_CASES = [
    FamilyCase("video_llava", video_llava, plain_picture, refuses=TWO_TOWERS),
    FamilyCase("video_llava-video", video_llava, whole_frames, refuses=TWO_TOWERS),
    FamilyCase("llava_next_video", llava_next_video, next_picture),
    FamilyCase("llava_next_video-video", llava_next_video, pooled_frames),
    FamilyCase("deepseek_vl", deepseek_vl, plain_picture),
    FamilyCase("deepseek_vl_hybrid", deepseek_vl_hybrid, seen_twice),
    FamilyCase("janus", janus, plain_picture),
]
