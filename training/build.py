"""Builds the untrained model and its processor from transformers classes with small configs.

All sizes are defined here. The model is a LLaVA with a SigLIP vision encoder (256 visual tokens in raster order, no
[CLS]) and a Llama decoder with RoPE; the processor is `LlavaProcessor` with a word-level tokenizer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from training.world.questions import LOCATIONS
from training.world.scenes import SIDE, Scene
from training.world.tasks import WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BOS, EOS, UNK, IMAGE = range(len(SPECIAL))
TEXT_WORDS = ("we", "see", "near", "then", "again", "it", "says", "picture", "yes", "no", "with", "by")
VOCABULARY = tuple(dict.fromkeys((*SPECIAL, *LOCATIONS, *WORDS, *TEXT_WORDS)))
MEAN, DEVIATION = 0.5, 0.25
"""Of pixel values from 0 to 1, removed by the image processor."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}assistant: {% endif %}"
    "{% if message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The dimensions of the model."""

    layers: int = 14
    width: int = 128
    heads: int = 4
    head_dim: int = 32
    hidden: int = 256
    patch: int = 12
    tower_layers: int = 6
    tower_width: int = 128
    tower_heads: int = 2
    tower_hidden: int = 256


def with_layers(size: Size, layers: int) -> Size:
    """Return the dimensions of a model with fewer decoder layers."""
    return replace(size, layers=layers)


def layers_in(state: Mapping[str, torch.Tensor]) -> int:
    """Return the number of decoder layers in the weights of a model."""
    found = [re.search(r"language_model\.layers\.(\d+)\.", name) for name in state]
    return 1 + max(int(match[1]) for match in found if match)


def build_model(size: Size, seed: int) -> LlavaForConditionalGeneration:
    """Return a model with initial weights."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=size.tower_width,
            intermediate_size=size.tower_hidden,
            num_hidden_layers=size.tower_layers,
            num_attention_heads=size.tower_heads,
            image_size=SIDE,
            patch_size=size.patch,
            vision_use_head=False,
        ),
        text_config=LlamaConfig(
            vocab_size=-(-len(VOCABULARY) // 32) * 32,
            hidden_size=size.width,
            intermediate_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            head_dim=size.head_dim,
            max_position_embeddings=2048,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        ),
        image_token_index=IMAGE,
        image_seq_length=(SIDE // size.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model.layers" in name and weight.dim() == 2:
                inner = "o_proj" in name or "down_proj" in name
                weight.normal_(std=0.02 / (2 * size.layers) ** 0.5 if inner else 0.06)
        model.model.language_model.embed_tokens.weight.normal_(std=0.5)
        model.lm_head.weight.normal_(std=0.02)
    return model


def to_pixels(scenes: list[Scene]) -> Tensor:
    """Return pixels as the image processor does: (count, 3, SIDE, SIDE), normalized."""
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - MEAN) / DEVIATION


def build_processor(size: Size) -> LlavaProcessor:
    """Return a processor whose vocabulary is the words of the tasks; other words become `<unk>`."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\bcolor\b"), "colour")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[?.,]|<loc\d\d>"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )
    return LlavaProcessor(
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3),
        wrapped,
        patch_size=size.patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )
