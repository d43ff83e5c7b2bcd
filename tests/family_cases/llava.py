"""LLaVA and what descends from it."""

import torch
import transformers as tf

import tiny_models as tiny
from family_cases.base import (
    END,
    IMAGE,
    START,
    VIDEO,
    VISION,
    FamilyCase,
    PictureInput,
    build,
    random_pixels,
    random_tiles,
    refuses_encoder_signals,
    refuses_renumbering,
    replace_timm_encoder,
)

RENUMBER = refuses_renumbering()
PINPOINTS = [[48, 96], [96, 48], [96, 96]]
SIZES = [(96, 96), (40, 90), (90, 30)]


def plain_picture(number):
    return PictureInput([IMAGE] * 36, {"pixel_values": random_pixels(number, 1, 3, 48, 48)})


def llava(attention):
    return tiny.llava(attention=attention)


def vipllava(attention):
    config = tf.VipLlavaConfig(
        vision_config=tf.CLIPVisionConfig(**{**VISION, "num_hidden_layers": 4}),
        text_config=tiny.text_config(),
        image_token_index=IMAGE,
        image_seq_length=36,
        vision_feature_layers=[-2, -1, 1],
    )
    return build(tf.VipLlavaForConditionalGeneration, config, attention)


def fast_vlm(attention):
    config = tf.FastVlmConfig(text_config=tiny.text_config("qwen2"), image_token_id=IMAGE, image_seq_length=36)
    config.vision_config.hidden_size = 32
    with replace_timm_encoder():
        return build(tf.FastVlmForConditionalGeneration, config, attention)


def next_run(size):
    """Placeholders of a picture: 36 of the overview, then unpadded rows with a line break each."""
    rows, cols = tf.models.llava_next.modeling_llava_next.get_anyres_image_grid_shape(size, PINPOINTS, 48)
    grid = torch.zeros(1, rows * 6, cols * 6)
    grid = tf.models.llava_next.modeling_llava_next.unpad_image(grid, size)
    return 36 + grid.shape[1] * (grid.shape[2] + 1)


def next_picture(number):
    size = SIZES[number % 3]
    rows, cols = tf.models.llava_next.modeling_llava_next.get_anyres_image_grid_shape(size, PINPOINTS, 48)
    pixels = torch.zeros(1, 5, 3, 48, 48)
    pixels[0, : rows * cols + 1] = random_tiles(number, rows, cols).roll(1, 0)
    return PictureInput([IMAGE] * next_run(size), {"pixel_values": pixels, "image_sizes": torch.tensor([size])})


def llava_next(attention):
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tiny.text_config(),
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return build(tf.LlavaNextForConditionalGeneration, config, attention)


def llava_onevision(attention):
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION),
        text_config=tiny.text_config("qwen2"),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return build(tf.LlavaOnevisionForConditionalGeneration, config, attention)


def onevision_video(number):
    frames = 3
    return PictureInput(
        [VIDEO] * (frames * 9 + 1), {"pixel_values_videos": random_pixels(number, 1, frames, 3, 48, 48)}, VIDEO
    )


def paligemma(attention):
    config = tf.PaliGemmaConfig(
        text_config=tf.GemmaConfig(**tiny.text_config().to_diff_dict() | {"model_type": "gemma"}),
        vision_config=tf.SiglipVisionConfig(projection_dim=64, vision_use_head=False, **VISION),
        image_token_id=IMAGE,
        projection_dim=64,
        hidden_size=64,
    )
    return build(tf.PaliGemmaForConditionalGeneration, config, attention)


def prefix_types(inputs, extra):
    types = torch.zeros_like(inputs["input_ids"])
    types[:, types.shape[1] - extra :] = 1
    return {**inputs, "token_type_ids": types}


def gemma3(attention):
    config = tf.Gemma3Config(
        text_config=tf.Gemma3TextConfig(
            **tiny.sizes(
                num_hidden_layers=8,
                sliding_window=24,
                layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 2,
                query_pre_attn_scalar=16,
            )
        ),
        vision_config=tf.SiglipVisionConfig(**VISION),
        mm_tokens_per_image=9,
        image_token_id=IMAGE,
        boi_token_id=START,
        eoi_token_id=END,
    )
    return build(tf.Gemma3ForConditionalGeneration, config, attention)


def gemma3_picture(number):
    return PictureInput([START, *[IMAGE] * 9, END], {"pixel_values": random_pixels(number, 1, 3, 48, 48)})


def image_types(inputs, extra):
    return {**inputs, "token_type_ids": (inputs["input_ids"] == IMAGE).long()}


FAMILY_CASES = [
    FamilyCase("llava", llava, plain_picture),
    FamilyCase("vipllava", vipllava, plain_picture, refuses=refuses_encoder_signals("patch features cannot be read")),
    FamilyCase("fast_vlm", fast_vlm, plain_picture, refuses=refuses_encoder_signals("has 0 attention layers")),
    FamilyCase("llava_next", llava_next, next_picture),
    FamilyCase("llava_onevision", llava_onevision, next_picture),
    FamilyCase(
        "llava_onevision-video",
        llava_onevision,
        onevision_video,
        several=False,
        refuses=refuses_encoder_signals("known for pictures in tiles only"),
    ),
    FamilyCase("paligemma", paligemma, plain_picture, finish=prefix_types),
    FamilyCase("gemma3", gemma3, gemma3_picture, finish=image_types, layers=(4, 7), refuses=RENUMBER, static=False),
]
