"""Real processor classes of more families, made offline as in `processors`."""

import transformers as tf
from torch.nn.functional import interpolate

from families.processors import ByHand, cut, qwen, tokenizer, without_video
from family_cases.base import END, IMAGE, START, VIDEO, Shot
from family_cases.llava import PINPOINTS
from family_cases.molmo import molmo2_views
from family_cases.more import lfm2_views


def next_images():
    return tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=PINPOINTS
    )


def granite4_vision():
    return tf.Granite4VisionProcessor(
        next_images(),
        tokenizer(image_token=("<image>", IMAGE)),
        patch_size=4,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
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


def paddleocr_vl():
    return tf.PaddleOCRVLProcessor(
        tf.PaddleOCRVLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}),
        tokenizer(image_token=("<|IMAGE_PLACEHOLDER|>", IMAGE)),
    )


class Asked:
    """A processor that wants more than a picture's token, or more arguments."""

    def __init__(self, inner, image_token, **more):
        self.inner, self.image_token, self.more = inner, image_token, more

    def __call__(self, **given):
        return self.inner(**given, **self.more)


def hunyuan_vl():
    words = tokenizer(
        image_token=("<image>", IMAGE), image_start_token=("<begin>", START), image_end_token=("<end>", END)
    )
    images = tf.HunYuanVLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}
    )
    return Asked(tf.HunYuanVLProcessor(images, words), "<begin><image><end>")


def qwen_images():
    return tf.Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 800, "longest_edge": 6400}
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
    return Asked(made, made.image_token, return_mm_token_type_ids=True)


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


def squeezed(pixels, high, wide):
    return interpolate(pixels[None], (high, wide), mode="bilinear", antialias=True)[0]


def square_shot(pixels):
    return Shot([IMAGE] * 36, {"pixel_values": squeezed(pixels, 48, 48)[None]})


def lfm2_shot(pixels):
    """Small pictures whole; large ones in tiles, with a thumbnail of at most 12 tokens."""
    high, wide = pixels.shape[1:]
    ratio = (12 * 256 / (high * wide)) ** 0.5
    whole = tuple(max(int(side * ratio / 16), 1) for side in (high, wide))
    view = squeezed(pixels, 16 * whole[0], 16 * whole[1])
    rows, cols, parts = cut(pixels)
    if high * wide < 2 * 12 * 256 or rows * cols == 1:
        return lfm2_views(1, 1, whole, [view])
    return lfm2_views(rows, cols, whole, [*parts[:-1], view])


def molmo2_shot(pixels):
    """As many crops each way as the picture has lengths of 60 pixels, three at most.

    Its projector multiplies two linear maps, which hides a change of sign: pixels are made positive here.
    """
    rows, cols = (min(max(round(side / 60), 1), 3) for side in pixels.shape[1:])
    return molmo2_views(1 + squeezed(pixels, 8 * (3 * rows + 4), 8 * (3 * cols + 4)))


MORE_PROCESSORS = {
    "granite4_vision": granite4_vision,
    "granite_docling": granite_docling,
    "lfm2_vl": lambda: ByHand("lfm2_vl", lfm2_shot),
    "molmo2": lambda: ByHand("molmo2", molmo2_shot),
    "paddleocr_vl": paddleocr_vl,
    "hunyuan_vl": hunyuan_vl,
    "exaone4_5": exaone4_5,
    "lfm3_vl": lambda: by_qwen(tf.Lfm3VlProcessor, None),
    "hyperclovax_vision_v2": lambda: by_qwen(tf.HyperCLOVAXVisionV2Processor, None),
    "cohere_compass": lambda: by_qwen(tf.CohereCompassProcessor, None),
    "cosmos3_omni": lambda: qwen(tf.Qwen3VLProcessor),
    "cosmos3_edge": cosmos3_edge,
    "qianfan_ocr": qianfan_ocr,
    "lighton_ocr": lighton_ocr,
    "qwen2_5_omni_thinker": lambda: omni(tf.Qwen2_5OmniProcessor),
    "qwen3_omni_moe_thinker": lambda: omni(tf.Qwen3OmniMoeProcessor),
    "video_llava": lambda: ByHand("video_llava", square_shot),
    "llava_next_video": llava_next_video,
    "deepseek_vl": lambda: ByHand("deepseek_vl", square_shot),
    "janus": lambda: ByHand("janus", square_shot),
}
