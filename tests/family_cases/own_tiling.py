"""Families that cut pictures into tiles or crops in ways of their own."""

import torch
import transformers as tf

import tiny_models as tiny
from family_cases.base import (
    END,
    IMAGE,
    START,
    VISION,
    FamilyCase,
    PictureInput,
    build,
    random_tiles,
    refuses_encoder_signals,
    refuses_merging_up_to,
    refuses_next_layer_scores,
    refuses_previous_layer_scores,
)
from family_cases.llava import PINPOINTS, next_picture
from family_cases.qwen import DEEPSTACK
from family_cases.tiled import unmarked

OVERVIEW = 294


def granite4_vision(attention):
    config = tf.Granite4VisionConfig(
        vision_config=tf.SiglipVisionConfig(**{**VISION, "hidden_size": 64, "num_hidden_layers": 3, "patch_size": 4}),
        text_config=tf.models.granite4_vision.Granite4VisionTextConfig(
            **{key: value for key, value in tiny.sizes(attention_multiplier=0.25).items() if key != "head_dim"}
        ),
        qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 48},
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [1, 2]],
        spatial_target_layers=[1, 3, 4, 5],
    )
    model = build(tf.Granite4VisionForConditionalGeneration, config, attention)
    model.model.image_newline.data.normal_()
    return model


def granite_docling(attention):
    config = tf.GraniteDoclingConfig(
        vision_config={
            **VISION,
            "num_hidden_layers": 3,
            "scale_factor": 2,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        text_config=tiny.sizes(embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
        pad_token_id=tiny.PAD,
    )
    return build(tf.GraniteDoclingForConditionalGeneration, config, attention)


def page(number, side=3):
    """Three rows of two, one tile without an overview, two rows of one."""
    rows, cols = [(3, 2), (1, 1), (2, 1)][number % 3]
    ids = []
    for row in range(rows):
        for col in range(cols):
            ids += [START, 200 + 10 * row + col, *[IMAGE] * side**2]
        ids += [9]
    if rows * cols > 1:
        ids += [9, START, OVERVIEW, *[IMAGE] * side**2, START]
    return PictureInput(ids, {"pixel_values": random_tiles(number, rows, cols)})


def fine_page(number):
    """Four times the tokens."""
    return page(number, side=6)


def by_sample(samples):
    """(samples, most tiles, 3, 48, 48), and which tiles exist."""
    most = max(sum(len(picture.tensors["pixel_values"]) for picture in pictures) for pictures in samples)
    pixels, there = torch.zeros(len(samples), most, 3, 48, 48), torch.zeros(len(samples), most, dtype=torch.bool)
    for row, mask, pictures in zip(pixels, there, samples, strict=True):
        if pictures:
            found = torch.cat([picture.tensors["pixel_values"] for picture in pictures])
            row[: len(found)], mask[: len(found)] = found, True
    return {"pixel_values": pixels, "pixel_attention_mask": there}


def finely(samples):
    return {**by_sample(samples), "tile_fine_mask": torch.ones(len(samples), dtype=torch.bool)}


def lfm2_vl(attention):
    config = tf.Lfm2VlConfig(
        vision_config=tf.Siglip2VisionConfig(
            **{key: value for key, value in VISION.items() if key != "image_size"}, num_patches=36
        ),
        text_config=tf.Lfm2Config(
            **{key: value for key, value in tiny.sizes(num_hidden_layers=8).items() if key != "head_dim"},
            layer_types=(["conv"] * 2 + ["full_attention"] + ["conv"]) * 2,
            block_auto_adjust_ff_dim=False,
        ),
        image_token_id=IMAGE,
        projector_hidden_size=48,
        tie_word_embeddings=False,
    )
    return build(tf.Lfm2VlForConditionalGeneration, config, attention)


def patches(picture, most=48):
    """Rows of flattened patches, channels last, filled up to the longest: from (3, height, width)."""
    parts = picture.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 3, 4, 0)
    rows, cols = parts.shape[:2]
    flat = parts.reshape(rows * cols, -1)
    found = torch.zeros(1, most, flat.shape[1])
    found[0, : len(flat)] = flat
    return {
        "pixel_values": found,
        "spatial_shapes": torch.tensor([[rows, cols]]),
        "pixel_attention_mask": (torch.arange(most) < len(flat)).int()[None],
    }


def lfm2_views(rows, cols, whole, views):
    """A picture of so many tiles of 3 x 3 tokens, the (rows, cols) of tokens of the last view, and all views."""
    tensors = [patches(view) for view in views]
    ids = [START]
    if rows * cols > 1:
        for tile in range(rows * cols):
            ids += [200 + 10 * (tile // cols) + tile % cols, *[IMAGE] * 9]
        ids.append(OVERVIEW)
    ids += [*[IMAGE] * (whole[0] * whole[1]), END]
    return PictureInput(ids, {key: torch.cat([found[key] for found in tensors]) for key in tensors[0]})


def lfm2_picture(number):
    """Two rows of three tiles and a flat thumbnail, a picture without tiles, two tiles and a thumbnail like them."""
    (rows, cols), whole = [((2, 3), (2, 4)), ((1, 1), (4, 2)), ((2, 1), (3, 3))][number % 3]
    found = random_tiles(number, rows, cols)
    view = torch.nn.functional.interpolate(found[-1:], (whole[0] * 16, whole[1] * 16), mode="area")[0]
    return lfm2_views(rows, cols, whole, [*found[:-1], view])


def qianfan_ocr(attention):
    config = tf.QianfanOCRConfig(
        vision_config={**VISION, "image_size": [48, 48], "patch_size": [4, 4]},
        text_config=tiny.text_config("qwen3"),
        image_token_id=IMAGE,
        image_seq_length=36,
        downsample_ratio=0.5,
    )
    return build(tf.QianfanOCRForConditionalGeneration, config, attention)


LATE = "has full attention to score with; prune at layer 3 or later"
EARLY = refuses_previous_layer_scores(lambda at: at < 3, LATE)

FAMILY_CASES = [
    FamilyCase("qianfan_ocr", qianfan_ocr, unmarked),
    FamilyCase(
        "granite4_vision",
        granite4_vision,
        next_picture,
        refuses=refuses_encoder_signals("does not return its states") | refuses_merging_up_to(4),
    ),
    FamilyCase("granite_docling", granite_docling, page, join=by_sample, refuses=DEEPSTACK),
    FamilyCase("granite_docling-fine", granite_docling, fine_page, join=finely, refuses=DEEPSTACK),
    FamilyCase(
        "lfm2_vl",
        lfm2_vl,
        lfm2_picture,
        layers=(3, 6),
        state=True,
        refuses={**refuses_next_layer_scores("no softmax attention", lambda at: at != 2), **EARLY},
    ),
]
