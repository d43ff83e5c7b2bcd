"""Real processor classes of families, made offline: small pictures, and a tokenizer whose special tokens are those of
the specimens' models."""

import numpy as np
import torch
import torch.nn.functional as F
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

import tiny_models as tiny
from family_cases import SPECIMENS
from family_cases.base import END, IMAGE, START, VIDEO, Shot
from family_cases.llava import PINPOINTS
from family_cases.tiled import separated_ids


def tokenizer(**special):
    """A tokenizer of words, whose special tokens have the given ids: name=(text, id)."""
    texts = {number: text for text, number in special.values()}
    words = {texts.get(number, f"word{number}"): number for number in range(tiny.VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="word5"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="word0",
        bos_token="word1",
        eos_token="word2",
        extra_special_tokens={name: text for name, (text, _) in special.items()},
        padding_side="left",
    )
    made.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(text, special=True, normalized=False) for text, _ in special.values()
            ]
        }
    )
    assert all(made.convert_tokens_to_ids(text) == number for text, number in special.values())
    return made


def without_video(cls):
    """The processor class without the part that needs torchvision, which no picture passes through."""

    class Quiet(cls):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name != "video_processor":
                super().check_argument_for_proper_class(argument_name, argument)

    return Quiet


def llava(images=None):
    return tf.LlavaProcessor(
        images or tf.CLIPImageProcessorPil(size={"height": 48, "width": 48}, do_center_crop=False),
        tokenizer(image_token=("<image>", IMAGE)),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_next():
    return tf.LlavaNextProcessor(
        tf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer(image_token=("<image>", IMAGE)),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_onevision():
    return without_video(tf.LlavaOnevisionProcessor)(
        tf.LlavaOnevisionImageProcessorPil(size={"height": 48, "width": 48}, image_grid_pinpoints=PINPOINTS),
        tokenizer(image_token=("<image>", IMAGE), video_token=("<video>", VIDEO)),
        None,
        num_image_tokens=36,
        vision_feature_select_strategy="full",
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


def tile_marks():
    """Names and ids of `<row_1_col_1>` and its like."""
    return {
        f"tile_{row}_{col}": (f"<row_{row}_col_{col}>", 200 + 10 * row + col)
        for row in range(1, 5)
        for col in range(1, 5)
    }


def idefics3(cls=tf.Idefics3Processor, images=tf.Idefics3ImageProcessorPil, *video):
    return without_video(cls)(
        images(size={"longest_edge": 144}, max_image_size={"longest_edge": 48}),
        tokenizer(
            image_token=("<image>", IMAGE),
            fake_image_token=("<fake_token_around_image>", START),
            global_image_token=("<global-img>", END),
            end_of_utterance_token=("<end_of_utterance>", 294),
            **tile_marks(),
        ),
        *video,
        image_seq_len=9,
    )


def got_images():
    return tf.GotOcr2ImageProcessorPil(size={"height": 48, "width": 48}, crop_to_patches=True, max_patches=6)


def internvl():
    return without_video(tf.InternVLProcessor)(
        got_images(),
        tokenizer(
            context_image_token=("<IMG_CONTEXT>", IMAGE),
            start_image_token=("<img>", START),
            end_image_token=("</img>", END),
            video_token=("<video>", VIDEO),
        ),
        None,
        image_seq_length=36,
    )


def aya_vision():
    marks = {f"tile_{number}": (f"TILE_{number}", 200 + number) for number in range(1, 12)}
    return tf.AyaVisionProcessor(
        got_images(),
        tokenizer(
            image_patch=("<|IMG_PATCH|>", IMAGE),
            image=("<image>", 294),
            start=("<|START_OF_IMG|>", START),
            end=("<|END_OF_IMG|>", END),
            overview=("TILE_GLOBAL", 295),
            **marks,
        ),
        patch_size=8,
        img_size=48,
        downsample_factor=2,
    )


def ovis2():
    return tf.Ovis2Processor(
        tf.Ovis2ImageProcessorPil(size={"height": 48, "width": 48}, crop_to_patches=True, max_patches=6),
        tokenizer(
            image_token=("<image>", 297),
            atom=("<IMG_ATOM>", IMAGE),
            start=("<IMG_START>", START),
            grid=("<IMG_GRID>", 296),
            col=("<IMG_COL>", 294),
            row=("<IMG_ROW>", 295),
            end=("<IMG_END>", END),
        ),
        image_token="<image>",
        image_seq_length=9,
    )


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


class ByHand:
    """Stands in for a processor that needs torchvision: as its code says, from a picture to a `Shot`."""

    image_token, do_pad = "<image>", False

    def __init__(self, name, shot):
        self.name, self.shot = name, shot

    def __call__(self, images, text, return_tensors):
        shots = [self.shot(self.pixels(image)) for image in images]
        ids = [1, 7, *(token for shot in shots for token in (*shot.ids, 9)), 8, 9]
        return SPECIMENS[self.name].inputs((ids, shots))

    def pixels(self, image):
        return torch.from_numpy(np.asarray(image, dtype=np.float32) / 128 - 1).permute(2, 0, 1)


def cut(pixels, side=48, most=6):
    """Rows and columns of tiles near the picture's shape, its tiles, and the overview."""
    shapes = [(rows, cols) for rows in range(1, most) for cols in range(1, most) if rows * cols <= most]
    ratio = pixels.shape[1] / pixels.shape[2]
    rows, cols = min(shapes, key=lambda shape: (abs(np.log(shape[0] / shape[1] / ratio)), shape))
    whole = F.interpolate(pixels[None], (rows * side, cols * side), mode="bilinear", antialias=True)[0]
    parts = whole.unflatten(1, (rows, side)).unflatten(3, (cols, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    overview = F.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)
    return rows, cols, torch.cat([parts, overview]) if rows * cols > 1 else overview


def llama4_shot(pixels):
    rows, cols, parts = cut(pixels)
    return Shot(separated_ids(rows, cols), {"pixel_values": parts})


def cohere2_shot(pixels):
    parts = cut(pixels)[2]
    return Shot([START, *[*[IMAGE] * 9, 295] * len(parts), END], {"pixel_values": parts})


def perception_shot(pixels):
    rows, cols, parts = cut(pixels)
    if rows * cols == 1:  # "thumb+tile" shows a small picture twice
        parts = parts.repeat(2, 1, 1, 1)
    return Shot([IMAGE] * (9 * len(parts)), {"pixel_values": parts.roll(1, 0)[None]})


class Pixtral(ByHand):
    """The image processor is the real one; the text is made by hand."""

    images = tf.PixtralImageProcessorPil(size={"longest_edge": 96}, patch_size={"height": 16, "width": 16})

    def pixels(self, image):
        return self.images([image], return_tensors="pt")


class Padding(ByHand):
    """The image processor is the real one, which pads to a square; the text is made by hand."""

    image_processor = tf.DeepseekVLImageProcessorPil(size={"height": 48, "width": 48}, min_size=1)

    def pixels(self, image):
        return self.image_processor([image], return_tensors="pt")


def padded_shot(found):
    return Shot([IMAGE] * 36, {"pixel_values": found["pixel_values"]})


def pixtral_shot(found):
    height, width = found["image_sizes"][0]
    row = [*[IMAGE] * (width // 16), START]
    pixels = torch.zeros(1, 3, 96, 96)
    pixels[..., :height, :width] = found["pixel_values"][0]
    return Shot(
        [*(row * (height // 16))[:-1], END], {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
    )


PROCESSORS = {
    "llava": llava,
    "vipllava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen,
    "qwen2_5_vl": lambda: qwen(tf.Qwen2_5_VLProcessor),
    "qwen3_vl": lambda: qwen(tf.Qwen3VLProcessor),
    "qwen3_vl_moe": lambda: qwen(tf.Qwen3VLProcessor),
    "qwen3_5": lambda: qwen(tf.Qwen3VLProcessor),
    "glm4v": glm4v,
    "ernie4_5_vl_moe": ernie,
    "video_llama_3": video_llama_3,
    "mistral3": lambda: Pixtral("mistral3", pixtral_shot),
    "llama4": lambda: ByHand("llama4", llama4_shot),
    "cohere2_vision": lambda: ByHand("cohere2_vision", cohere2_shot),
    "perception_lm": lambda: ByHand("perception_lm", perception_shot),
    "paligemma": paligemma,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "smolvlm": lambda: idefics3(tf.SmolVLMProcessor, tf.SmolVLMImageProcessorPil, None),
    "internvl": internvl,
    "aya_vision": aya_vision,
    "ovis2": ovis2,
    "fast_vlm": llava,
}
