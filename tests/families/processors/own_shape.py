"""Processors of families whose pictures keep their own shape."""

import torch
import transformers as tf

from families.processors.making import ByHand, WithArguments, tokenizer, without_video
from family_cases.base import END, IMAGE, START, VIDEO, PictureInput


def qwen_images():
    return tf.Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}
    )


def qwen(cls=tf.Qwen2VLProcessor):
    return without_video(cls)(
        tf.Qwen2VLImageProcessorPil(
            patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}
        ),
        tokenizer(
            image_token=("<|image_pad|>", IMAGE),
            video_token=("<|video_pad|>", VIDEO),
            vision_bos_token=("<|vision_start|>", START),
            vision_eos_token=("<|vision_end|>", END),
        ),
        None,
    )


def by_qwen(cls, *video):
    """Of a kind with Qwen2-VL's."""
    words = tokenizer(
        image_token=("<|IMAGE_PAD|>", IMAGE),
        video_token=("<|VIDEO_PAD|>", VIDEO),
        vision_start_token=("<|VISION_START|>", START),
        vision_end_token=("<|VISION_END|>", END),
    )
    return without_video(cls)(qwen_images(), words, *video)


def glm4v():
    return without_video(tf.Glm4vProcessor)(
        tf.Glm4vImageProcessorPil(
            patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 800, "longest_edge": 12800}
        ),
        tokenizer(image_token=("<|image|>", IMAGE), video_token=("<|video|>", VIDEO)),
        None,
    )


def ernie():
    return without_video(tf.Ernie4_5_VLMoeProcessor)(
        tf.Ernie4_5_VLMoeImageProcessorPil(
            patch_size=4, temporal_patch_size=1, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}
        ),
        tokenizer(
            image_token=("<|IMAGE_PLACEHOLDER|>", IMAGE),
            image_start_token=("<|IMAGE_START|>", START),
            image_end_token=("<|IMAGE_END|>", END),
            video_token=("<|VIDEO_PLACEHOLDER|>", VIDEO),
            video_start_token=("<|VIDEO_START|>", 294),
            video_end_token=("<|VIDEO_END|>", 295),
        ),
        None,
    )


def video_llama_3():
    return without_video(tf.VideoLlama3Processor)(
        tf.VideoLlama3ImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}),
        tokenizer(image_token=("<image>", IMAGE), video_token=("<video>", VIDEO)),
        None,
    )


def paddleocr_vl():
    return tf.PaddleOCRVLProcessor(
        tf.PaddleOCRVLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}),
        tokenizer(image_token=("<|IMAGE_PLACEHOLDER|>", IMAGE)),
    )


def hunyuan_vl():
    words = tokenizer(
        image_token=("<image>", IMAGE), image_start_token=("<begin>", START), image_end_token=("<end>", END)
    )
    images = tf.HunYuanVLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}
    )
    return WithArguments(tf.HunYuanVLProcessor(images, words), "<begin><image><end>")


def cosmos3_edge():
    words = tokenizer(
        image_token=("<|image_pad|>", IMAGE),
        video_token=("<|video_pad|>", VIDEO),
        vision_bos_token=("<|vision_start|>", START),
        vision_eos_token=("<|vision_end|>", END),
    )
    images = tf.Cosmos3EdgeImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}
    )
    made = without_video(tf.Cosmos3EdgeProcessor)(images, words, None)
    return WithArguments(made, made.image_token, return_mm_token_type_ids=True)


def exaone4_5():
    return without_video(tf.Exaone4_5_Processor)(
        qwen_images(), tokenizer(image_token=("<image>", IMAGE), video_token=("<video>", VIDEO)), None
    )


def omni(cls):
    words = tokenizer(
        image_token=("<|IMAGE|>", IMAGE),
        video_token=("<|VIDEO|>", VIDEO),
        audio_token=("<|AUDIO|>", 298),
        vision_bos_token=("<|vision_bos|>", START),
        vision_eos_token=("<|vision_eos|>", END),
        audio_bos_token=("<|audio_bos|>", 296),
        audio_eos_token=("<|audio_eos|>", 297),
    )
    return without_video(cls)(qwen_images(), None, tf.WhisperFeatureExtractor(), words)


def lighton_ocr():
    return tf.LightOnOcrProcessor(
        tf.PixtralImageProcessorPil(size={"longest_edge": 96}, patch_size={"height": 16, "width": 16}),
        tokenizer(
            image_token=("<|image_pad|>", IMAGE),
            image_break_token=("<|vision_pad|>", START),
            image_end_token=("<|vision_end|>", END),
        ),
        patch_size=8,
        spatial_merge_size=2,
    )


class Pixtral(ByHand):
    """The image processor is the real one; the text is made by hand."""

    images = tf.PixtralImageProcessorPil(size={"longest_edge": 96}, patch_size={"height": 16, "width": 16})

    def pixels(self, image):
        return self.images([image], return_tensors="pt")


def pixtral_picture(found):
    height, width = found["image_sizes"][0]
    row = [*[IMAGE] * (width // 16), START]
    pixels = torch.zeros(1, 3, 96, 96)
    pixels[..., :height, :width] = found["pixel_values"][0]
    return PictureInput(
        [*(row * (height // 16))[:-1], END], {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
    )


PROCESSORS = {
    "qwen2_vl": qwen,
    "qwen2_5_vl": lambda: qwen(tf.Qwen2_5_VLProcessor),
    "qwen3_vl": lambda: qwen(tf.Qwen3VLProcessor),
    "qwen3_vl_moe": lambda: qwen(tf.Qwen3VLProcessor),
    "qwen3_5": lambda: qwen(tf.Qwen3VLProcessor),
    "glm4v": glm4v,
    "ernie4_5_vl_moe": ernie,
    "video_llama_3": video_llama_3,
    "mistral3": lambda: Pixtral("mistral3", pixtral_picture),
    "paddleocr_vl": paddleocr_vl,
    "hunyuan_vl": hunyuan_vl,
    "exaone4_5": exaone4_5,
    "lfm3_vl": lambda: by_qwen(tf.Lfm3VlProcessor, None),
    "hyperclovax_vision_v2": lambda: by_qwen(tf.HyperCLOVAXVisionV2Processor, None),
    "cohere_compass": lambda: by_qwen(tf.CohereCompassProcessor, None),
    "cosmos3_omni": lambda: qwen(tf.Qwen3VLProcessor),
    "cosmos3_edge": cosmos3_edge,
    "lighton_ocr": lighton_ocr,
    "qwen2_5_omni_thinker": lambda: omni(tf.Qwen2_5OmniProcessor),
    "qwen3_omni_moe_thinker": lambda: omni(tf.Qwen3OmniMoeProcessor),
}
