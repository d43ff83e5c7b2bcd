"""Families that cut pictures into tiles."""

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
    refuses_mid_layer_states,
    replace_timm_encoder,
)

SHAPES = [(2, 1), (1, 3), (1, 1)]
COL, ROW, OVERVIEW = 294, 295, 296


def shape(number):
    return SHAPES[number % 3]


def internvl(attention):
    config = tf.InternVLConfig(
        vision_config={**VISION, "image_size": [48, 48], "patch_size": [4, 4]},
        text_config=tiny.text_config("qwen2"),
        image_token_id=IMAGE,
        image_seq_length=36,
        downsample_ratio=0.5,
    )
    return build(tf.InternVLForConditionalGeneration, config, attention)


def unmarked(number):
    pixels = random_tiles(number, *shape(number))
    return PictureInput([START, *[IMAGE] * (36 * len(pixels)), END], {"pixel_values": pixels})


def aya_vision(attention):
    config = tf.AyaVisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION),
        text_config=tf.Cohere2Config(**tiny.sizes(sliding_window=4096, layer_types=["full_attention"] * tiny.LAYERS)),
        downsample_factor=2,
        image_token_index=IMAGE,
    )
    return build(tf.AyaVisionForConditionalGeneration, config, attention)


def marked(number):
    pixels = random_tiles(number, *shape(number))
    ids = [START]
    for tile in range(len(pixels) - 1):
        ids += [20 + tile, *[IMAGE] * 9]
    return PictureInput([*ids, OVERVIEW, *[IMAGE] * 9, END], {"pixel_values": pixels})


def cohere2_vision(attention):
    config = tf.Cohere2VisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION),
        text_config=tf.Cohere2Config(**tiny.sizes(sliding_window=4096, layer_types=["full_attention"] * tiny.LAYERS)),
        downsample_factor=2,
        image_token_id=IMAGE,
    )
    return build(tf.Cohere2VisionForConditionalGeneration, config, attention)


def broken(number):
    pixels = random_tiles(number, *shape(number))
    return PictureInput([START, *[*[IMAGE] * 9, ROW] * len(pixels), END], {"pixel_values": pixels})


def idefics3(attention, cls="Idefics3"):
    config = getattr(tf, f"{cls}Config")(
        vision_config=dict(VISION), text_config=tiny.text_config(), scale_factor=2, image_token_id=IMAGE
    )
    return build(getattr(tf, f"{cls}ForConditionalGeneration"), config, attention)


def by_sample(samples):
    """(samples, most tiles, 3, 48, 48); what is missing is zero."""
    most = max(sum(len(picture.tensors["pixel_values"]) for picture in pictures) for pictures in samples)
    pixels = torch.zeros(len(samples), most, 3, 48, 48)
    for row, pictures in zip(pixels, samples, strict=True):
        if pictures:
            found = torch.cat([picture.tensors["pixel_values"] for picture in pictures])
            row[: len(found)] = found
    return {"pixel_values": pixels}


def llama4(attention):
    config = tf.Llama4Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 8,
            "pixel_shuffle_ratio": 0.5,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "vision_output_dim": 32,
        },
        text_config=tiny.sizes(
            num_local_experts=2,
            intermediate_size_mlp=96,
            attention_chunk_size=24,
            interleave_moe_layer_step=1,
            num_experts_per_tok=1,
            num_hidden_layers=8,
        ),
        image_token_index=IMAGE,
    )
    return build(tf.Llama4ForConditionalGeneration, config, attention)


def separated_ids(rows, cols):
    ids = [START]
    if rows * cols > 1:
        for _ in range(rows):
            for col in range(cols):
                ids += [*[IMAGE] * 9, ROW if col == cols - 1 else COL]
    return [*ids, OVERVIEW, *[IMAGE] * 9, END]


def separated(number):
    return PictureInput(separated_ids(*shape(number)), {"pixel_values": random_tiles(number, *shape(number))})


def ovis2(attention):
    config = tf.Ovis2Config(
        vision_config=tf.Ovis2VisionConfig(**VISION, hidden_stride=2, vocab_size=64, num_visual_indicator_tokens=5),
        text_config=tiny.text_config("qwen2"),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[START, OVERVIEW, COL, ROW, END],
        vocab_size=tiny.VOCABULARY,
        hidden_size=64,
    )
    return build(tf.Ovis2ForConditionalGeneration, config, attention)


def overview_first(number):
    rows, cols = shape(number)
    ids = [START, *[IMAGE] * 9, OVERVIEW]
    if rows * cols > 1:
        for row in range(rows):
            for col in range(cols):
                ids += [IMAGE] * 9
                ids += [COL] if col < cols - 1 else [ROW] if row < rows - 1 else []
    return PictureInput([*ids, END], {"pixel_values": random_tiles(number, rows, cols).roll(1, 0)})


def perception_lm(attention):
    config = tf.PerceptionLMConfig(
        vision_config=tf.TimmWrapperConfig(model_args={"embed_dim": 32}),
        text_config=tiny.text_config(),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        projector_pooling_ratio=2,
    )
    with replace_timm_encoder(flat=True):
        return build(tf.PerceptionLMForConditionalGeneration, config, attention)


def perceived(number):
    pixels = random_tiles(number, *[(2, 1), (1, 2)][number % 2]).roll(1, 0)
    return PictureInput([IMAGE] * (9 * len(pixels)), {"pixel_values": pixels[None]})


def perceived_video(number):
    return PictureInput([VIDEO] * 27, {"pixel_values_videos": random_pixels(number, 1, 3, 3, 48, 48)}, VIDEO)


LLAMA4 = refuses_encoder_signals("296 states for 72 tokens")

FAMILY_CASES = [
    FamilyCase("internvl", internvl, unmarked),
    FamilyCase("aya_vision", aya_vision, marked, rotates=False, refuses=refuses_mid_layer_states()),
    FamilyCase("cohere2_vision", cohere2_vision, broken, rotates=False, refuses=refuses_mid_layer_states()),
    FamilyCase("idefics3", idefics3, marked, join=by_sample),
    FamilyCase("smolvlm", lambda attention: idefics3(attention, "SmolVLM"), marked, join=by_sample),
    FamilyCase("llama4", llama4, separated, layers=(4, 7), refuses=LLAMA4, static=False),
    FamilyCase("ovis2", ovis2, overview_first),
    FamilyCase("perception_lm", perception_lm, perceived, refuses=refuses_encoder_signals("has 0 attention layers")),
    FamilyCase(
        "perception_lm-video", perception_lm, perceived_video, refuses=refuses_encoder_signals("has 0 attention layers")
    ),
]
