"""Molmo 2, whose pictures come in overlapping crops."""

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
    random_pixels,
    refuses_next_layer_scores,
    refuses_renumbering,
)

COL, LOW = 296, 297


def molmo2(attention, **changes):
    config = tf.Molmo2Config(
        vision_config={
            **{key: value for key, value in VISION.items() if key != "image_size"},
            "image_size": [56, 56],
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
        adapter_config={
            "vision_feature_layer": [-1, 0],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "text_hidden_size": 64,
        },
        text_config=tiny.sizes(
            additional_vocab_size=0,
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            rope_scaling_layers=[1, 3, 5],
            **changes,
        ),
        image_start_token_id=START,
        low_res_image_start_token_id=LOW,
        image_end_token_id=END,
        image_patch_id=IMAGE,
    )
    return build(tf.Molmo2ForConditionalGeneration, config, attention)


def windows(index):
    """Patches that are pooled together two by two, -1 beyond the edge: (windows, 4), and (rows, cols) of them."""
    index = torch.nn.functional.pad(index, (0, index.shape[1] % 2, 0, index.shape[0] % 2), value=-1)
    parts = index.unfold(0, 2, 2).unfold(1, 2, 2)
    return parts.reshape(-1, 4), list(parts.shape[:2])


def flattened(views):
    """Patches of equal views: (views, 49, 192) from (views, 3, 56, 56)."""
    return views.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(len(views), 49, -1)


def molmo2_views(picture):
    """A picture of (3, 8 * rows, 8 * cols) pixels in crops of 7 x 7 patches, each 3 further than the last."""
    rows, cols = ((side // 8 - 4) // 3 for side in picture.shape[1:])
    crops = picture.unfold(1, 56, 24).unfold(2, 56, 24).permute(1, 2, 0, 3, 4).flatten(0, 1)
    index = torch.arange(rows * cols * 49).view(rows, cols, 7, 7).clone()
    index[1:, :, :2], index[:-1, :, -2:], index[:, 1:, :, :2], index[:, :-1, :, -2:] = -1, -1, -1, -1
    index = index.permute(0, 2, 1, 3).flatten()
    fine, (high, wide) = windows(index[index >= 0].view(rows * 3 + 4, cols * 3 + 4))
    coarse, (low, narrow) = windows(torch.arange(49).view(7, 7))
    whole = torch.nn.functional.interpolate(picture[None], (56, 56), mode="bilinear", antialias=True)
    ids = [LOW, *[*[IMAGE] * narrow, COL] * low, END, START, *[*[IMAGE] * wide, COL] * high, END]
    return PictureInput(
        ids,
        {
            "pixel_values": flattened(torch.cat([whole, crops])),
            "image_token_pooling": torch.cat([coarse, torch.where(fine >= 0, fine + 49, -1)]),
            "image_grids": torch.tensor([[low, narrow, high, wide]]),
            "image_num_crops": torch.tensor([len(crops) + 1]),
        },
    )


def molmo2_picture(number):
    rows, cols = [(2, 1), (1, 3), (1, 1)][number % 3]
    return molmo2_views(random_pixels(number, 3, 8 * (rows * 3 + 4), 8 * (cols * 3 + 4)))


def molmo2_video(number):
    """Three frames after the times at which they were taken."""
    pooled = [windows(frame)[0] for frame in torch.arange(3 * 49).view(3, 7, 7)]
    rows = cols = 4
    return PictureInput(
        [word for time in range(3) for word in (20 + time, START, *[IMAGE] * (rows * cols), END)],
        {
            "pixel_values_videos": flattened(random_pixels(number, 3, 3, 56, 56)),
            "video_token_pooling": torch.cat(pooled),
            "video_grids": torch.tensor([[3, rows, cols]]),
        },
    )


def pooled_after(samples):
    """Patches are numbered over all pictures of a batch."""
    pictures, found, before = [picture for sample in samples for picture in sample], {}, 0
    for picture in pictures:
        for key, value in picture.tensors.items():
            if key.endswith("pooling"):
                value = torch.where(value >= 0, value + before, -1)
            found.setdefault(key, []).append(value)
        before += sum(value.shape[:2].numel() for key, value in picture.tensors.items() if key.startswith("pixel"))
    return {key: torch.cat(values) for key, values in found.items()}


def molmo2_types(inputs, extra):
    ids = inputs["input_ids"]
    return {**inputs, "mm_token_type_ids": torch.isin(ids, torch.tensor([IMAGE, START, END, COL, LOW])).long()}


def molmo2_o(attention):
    """As the checkpoint on top of OLMo: norms after the layers and over all heads at once."""
    return molmo2(attention, qk_norm_type="olmo", norm_after=True)


RENUMBER = refuses_renumbering()

FAMILY_CASES = [
    FamilyCase("molmo2", molmo2, molmo2_picture, join=pooled_after, finish=molmo2_types, refuses=RENUMBER),
    FamilyCase(
        "molmo2-o",
        molmo2_o,
        molmo2_picture,
        join=pooled_after,
        finish=molmo2_types,
        refuses=RENUMBER | refuses_next_layer_scores("no norm before their attention"),
    ),
    FamilyCase(
        "molmo2-video", molmo2, molmo2_video, join=pooled_after, finish=molmo2_types, refuses=RENUMBER, several=False
    ),
]
