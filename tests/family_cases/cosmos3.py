"""Families that are others under a new name, or almost."""

import transformers as tf

import tiny_models as tiny
from family_cases.base import FamilyCase, PictureInput, add_token_types, build
from family_cases.qwen import DEEPSTACK, IDS, MROPE, RENUMBER, qwen3_tower, qwen_picture, timed_video


def cosmos3_omni(attention):
    config = tf.Cosmos3OmniConfig(
        text_config=tiny.sizes(rope_parameters={**MROPE, "mrope_interleaved": True}),
        vision_config=qwen3_tower(),
        **IDS,
    )
    return build(tf.Cosmos3OmniForConditionalGeneration, config, attention)


def cosmos3_edge(attention):
    config = tf.Cosmos3EdgeConfig(
        text_config=tiny.sizes(rope_parameters={**MROPE, "mrope_interleaved": True}),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "num_patches": 64,
            "spatial_merge_size": 2,
        },
        projector_hidden_size=48,
        **IDS,
    )
    return build(tf.Cosmos3EdgeForConditionalGeneration, config, attention)


def without_time(made):
    """Patches of one moment instead of two."""

    def single(number):
        found = made(number)
        pixels = {key: value[:, :48] if key.startswith("pixel") else value for key, value in found.tensors.items()}
        return PictureInput(found.ids, pixels, found.token)

    return single


FAMILY_CASES = [
    FamilyCase("cosmos3_omni", cosmos3_omni, qwen_picture, finish=add_token_types, refuses=RENUMBER | DEEPSTACK),
    FamilyCase("cosmos3_omni-video", cosmos3_omni, timed_video, finish=add_token_types, refuses=RENUMBER | DEEPSTACK),
    FamilyCase("cosmos3_edge", cosmos3_edge, without_time(qwen_picture), finish=add_token_types, refuses=RENUMBER),
    FamilyCase("cosmos3_edge-video", cosmos3_edge, without_time(timed_video), finish=add_token_types, refuses=RENUMBER),
]
