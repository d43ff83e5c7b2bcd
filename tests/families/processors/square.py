"""Processors of families with one square grid per picture."""

import transformers as tf

from families.processors.making import ByHand, squeezed, tokenizer
from family_cases.base import END, IMAGE, START, PictureInput


def llava(images=None):
    return tf.LlavaProcessor(
        images or tf.CLIPImageProcessorPil(size={"height": 48, "width": 48}, do_center_crop=False),
        tokenizer(image_token=("<image>", IMAGE)),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def paligemma():
    image_processor = tf.SiglipImageProcessorPil(size={"height": 48, "width": 48})
    image_processor.image_seq_length = 36
    return tf.PaliGemmaProcessor(image_processor, tokenizer(image_token=("<image>", IMAGE)))


def gemma3():
    return tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size={"height": 48, "width": 48}),
        tokenizer(image_token=("<image>", IMAGE), boi_token=("<boi>", START), eoi_token=("<eoi>", END)),
        image_seq_length=9,
    )


def square_picture(pixels):
    return PictureInput([IMAGE] * 36, {"pixel_values": squeezed(pixels, 48, 48)[None]})


class Padding(ByHand):
    """The image processor is the real one, which pads to a square; the text is made by hand."""

    image_processor = tf.DeepseekVLImageProcessorPil(size={"height": 48, "width": 48}, min_size=1)

    def pixels(self, image):
        return self.image_processor([image], return_tensors="pt")


def padded_picture(found):
    return PictureInput([IMAGE] * 36, {"pixel_values": found["pixel_values"]})


PROCESSORS = {
    "llava": llava,
    "vipllava": llava,
    "fast_vlm": llava,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "video_llava": lambda: ByHand("video_llava", square_picture),
    "deepseek_vl": lambda: ByHand("deepseek_vl", square_picture),
    "janus": lambda: ByHand("janus", square_picture),
}
