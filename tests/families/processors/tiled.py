"""Processors of families that cut pictures into tiles or crops."""

import transformers as tf

from families.processors.making import ByHand, cut, squeezed, tokenizer, without_video
from family_cases.base import END, IMAGE, START, VIDEO, PictureInput
from family_cases.llava import PINPOINTS
from family_cases.molmo2 import molmo2_views
from family_cases.own_tiling import lfm2_views
from family_cases.tiled import separated_ids


def next_images():
    return tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=PINPOINTS
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


def llava_next_video():
    return without_video(tf.LlavaNextVideoProcessor)(
        None,
        next_images(),
        tokenizer(image_token=("<image>", IMAGE), video_token=("<video>", VIDEO)),
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


def granite4_vision():
    return tf.Granite4VisionProcessor(
        next_images(),
        tokenizer(image_token=("<image>", IMAGE)),
        patch_size=4,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
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


def granite_docling():
    marks = {
        f"tile_{row}_{col}": (f"<row_{row}_col_{col}>", 200 + 10 * row + col)
        for row in range(1, 7)
        for col in range(1, 7)
    }
    return tf.GraniteDoclingProcessor(
        tf.GraniteDoclingImageProcessorPil(size={"height": 48, "width": 48}, max_patches=6),
        tokenizer(
            image_token=("<image>", IMAGE),
            fake_image_token=("<fake_token_around_image>", START),
            global_image_token=("<global-img>", END),
            **marks,
        ),
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


def qianfan_ocr():
    return tf.QianfanOCRProcessor(
        tf.GotOcr2ImageProcessorPil(size={"height": 48, "width": 48}, crop_to_patches=True, max_patches=6),
        tokenizer(
            context_image_token=("<IMG_CONTEXT>", IMAGE),
            start_image_token=("<img>", START),
            end_image_token=("</img>", END),
        ),
        image_seq_length=36,
        image_placeholder_token="<IMG_CONTEXT>",
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


def llama4_picture(pixels):
    rows, cols, parts = cut(pixels)
    return PictureInput(separated_ids(rows, cols), {"pixel_values": parts})


def cohere2_picture(pixels):
    parts = cut(pixels)[2]
    return PictureInput([START, *[*[IMAGE] * 9, 295] * len(parts), END], {"pixel_values": parts})


def perception_picture(pixels):
    rows, cols, parts = cut(pixels)
    if rows * cols == 1:  # "thumb+tile" shows a small picture twice
        parts = parts.repeat(2, 1, 1, 1)
    return PictureInput([IMAGE] * (9 * len(parts)), {"pixel_values": parts.roll(1, 0)[None]})


def lfm2_picture(pixels):
    """Small pictures whole; large ones in tiles, with a thumbnail of at most 12 tokens."""
    high, wide = pixels.shape[1:]
    ratio = (12 * 256 / (high * wide)) ** 0.5
    whole = tuple(max(int(side * ratio / 16), 1) for side in (high, wide))
    view = squeezed(pixels, 16 * whole[0], 16 * whole[1])
    rows, cols, parts = cut(pixels)
    if high * wide < 2 * 12 * 256 or rows * cols == 1:
        return lfm2_views(1, 1, whole, [view])
    return lfm2_views(rows, cols, whole, [*parts[:-1], view])


def molmo2_picture(pixels):
    """As many crops each way as the picture has lengths of 60 pixels, three at most.

    Its projector multiplies two linear maps, which hides a change of sign: pixels are made positive here.
    """
    rows, cols = (min(max(round(side / 60), 1), 3) for side in pixels.shape[1:])
    return molmo2_views(1 + squeezed(pixels, 8 * (3 * rows + 4), 8 * (3 * cols + 4)))


PROCESSORS = {
    "llava_next": llava_next,
    "llava_next_video": llava_next_video,
    "llava_onevision": llava_onevision,
    "granite4_vision": granite4_vision,
    "idefics3": idefics3,
    "smolvlm": lambda: idefics3(tf.SmolVLMProcessor, tf.SmolVLMImageProcessorPil, None),
    "granite_docling": granite_docling,
    "internvl": internvl,
    "qianfan_ocr": qianfan_ocr,
    "aya_vision": aya_vision,
    "ovis2": ovis2,
    "llama4": lambda: ByHand("llama4", llama4_picture),
    "cohere2_vision": lambda: ByHand("cohere2_vision", cohere2_picture),
    "perception_lm": lambda: ByHand("perception_lm", perception_picture),
    "lfm2_vl": lambda: ByHand("lfm2_vl", lfm2_picture),
    "molmo2": lambda: ByHand("molmo2", molmo2_picture),
}
