"""Families whose pictures keep their own shape, in forms of their own."""

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
    add_token_types,
    build,
    random_pixels,
)
from family_cases.qwen import FRAMES, GRIDS, MROPE, RENUMBER, TOWER, qwen_picture, video

PATCHES = {**VISION, "patch_size": 4}
MISTRAL_SIZES = [(48, 48), (32, 48), (48, 16)]


def framed_video(number):
    """Frames in image placeholders, each between its marks, all between those of a video."""
    found = video(number)
    frame = [START, *[IMAGE] * (found.ids.count(VIDEO) // FRAMES), END]
    return PictureInput([294, *frame * FRAMES, 295], found.tensors)


def mark_framed(inputs, extra):
    ids = inputs["input_ids"]
    inside = (ids == 294).cumsum(1) > (ids == 295).cumsum(1)
    return {**inputs, "mm_token_type_ids": (ids == IMAGE).long() * (1 + inside.long())}


def paired_video(number):
    """Two frames make one."""
    rows, cols = GRIDS[number % 3]
    pixels = random_pixels(number, 4 * rows * cols, 3 * 4 * 4)
    return PictureInput(
        [START, *[VIDEO] * (2 * rows * cols // 4), END],
        {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[4, rows, cols]])},
        VIDEO,
    )


def llama_video(number):
    rows, cols = GRIDS[number % 3]
    return PictureInput(
        [VIDEO] * (FRAMES * rows * cols // 4),
        {
            "pixel_values_videos": random_pixels(number, FRAMES * rows * cols, 3 * 4 * 4),
            "video_grid_thw": torch.tensor([[FRAMES, rows, cols]]),
            "video_merge_sizes": torch.tensor([2]),
        },
        VIDEO,
    )


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
    inputs = add_token_types(inputs, extra)
    return {**inputs, "moe_mm_token_type_ids": inputs["mm_token_type_ids"].clamp(max=1)}


def ernie_picture(number):
    found = qwen_picture(number)
    return PictureInput(found.ids, {**found.tensors, "pixel_values": found.tensors["pixel_values"][:, : 3 * 16]})


def video_llama_3(attention):
    config = tf.VideoLlama3Config(
        text_config=tiny.text_config("qwen2"),
        vision_config=tf.VideoLlama3VisionConfig(**{**VISION, "patch_size": 4}),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return build(tf.VideoLlama3ForConditionalGeneration, config, attention)


def llama_picture(number):
    rows, cols = GRIDS[number % 3]
    return PictureInput(
        [IMAGE] * (rows * cols // 4),
        {
            "pixel_values": random_pixels(number, rows * cols, 3 * 4 * 4),
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


def mistral_picture(number):
    height, width = MISTRAL_SIZES[number % 3]
    row = [*[IMAGE] * (width // 16), START]
    ids = [*(row * (height // 16))[:-1], END]
    pixels = torch.zeros(1, 3, 48, 48)
    pixels[..., :height, :width] = random_pixels(number, 1, 3, height, width)
    return PictureInput(ids, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])})


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
    return PictureInput(
        qwen_picture(number).ids,
        {
            "pixel_values": random_pixels(number, rows * cols, 3, 4, 4),
            "image_grid_thw": torch.tensor([[1, rows, cols]]),
        },
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
    return PictureInput(
        [START, *[IMAGE] * (rows // 2 * (cols // 2 + 1) + 2), END],
        {"pixel_values": random_pixels(number, rows * cols, 48), "image_grid_thw": torch.tensor([[1, rows, cols]])},
    )


def lighton_ocr(attention):
    config = tf.LightOnOcrConfig(
        vision_config=tf.PixtralVisionConfig(**VISION),
        text_config=tiny.text_config("qwen3"),
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )
    return build(tf.LightOnOcrForConditionalGeneration, config, attention)


def unbroken(number):
    """Rows without anything between them."""
    found = mistral_picture(number)
    return PictureInput([word for word in found.ids if word == IMAGE], found.tensors)


class NumbersPicturesOverBatch(FamilyCase):
    """Of a model that numbers pictures over the whole batch: only the first prompt's are the same alone."""

    def prompts(self):
        return [self.prompt(0, 1), self.prompt(seed=1)]


FAMILY_CASES = [
    FamilyCase("glm4v-video", glm4v, framed_video, finish=mark_framed, refuses=RENUMBER),
    FamilyCase("ernie4_5_vl_moe-video", ernie, paired_video, finish=ernie_types, refuses=RENUMBER),
    FamilyCase("video_llama_3-video", video_llama_3, llama_video),
    FamilyCase("glm4v", glm4v, qwen_picture, finish=add_token_types, refuses=RENUMBER),
    FamilyCase("ernie4_5_vl_moe", ernie, ernie_picture, finish=ernie_types, refuses=RENUMBER),
    FamilyCase("video_llama_3", video_llama_3, llama_picture),
    FamilyCase("mistral3", mistral3, mistral_picture),
    FamilyCase("paddleocr_vl", paddleocr_vl, stacked, finish=add_token_types, refuses=RENUMBER),
    NumbersPicturesOverBatch("hunyuan_vl", hunyuan_vl, framed, finish=add_token_types, refuses=RENUMBER),
    FamilyCase("lighton_ocr", lighton_ocr, unbroken),
]
