"""Builds the untrained model and its processor from transformers classes with small configs.

All sizes are defined here. The model is a LLaVA with a SigLIP vision encoder (256 visual tokens in raster order, no
[CLS]) and a Llama decoder with RoPE; the processor is `LlavaProcessor` with a word-level tokenizer.
"""

from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from feathervlm.embedded.questions import LOCATIONS
from feathervlm.embedded.scenes import SIDE
from feathervlm.embedded.tasks import WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BOS, EOS, UNK, IMAGE = range(len(SPECIAL))
TEXT_WORDS = ("we", "see", "near", "then", "again", "it", "says", "picture", "yes", "no", "with", "by")
VOCABULARY = tuple(dict.fromkeys((*SPECIAL, *LOCATIONS, *WORDS, *TEXT_WORDS)))
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}assistant: {% endif %}"
    "{% if message.content is string %}{{ message.content }} {% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The dimensions of the model."""

    layers: int = 16
    width: int = 128
    heads: int = 2
    head_dim: int = 64
    hidden: int = 256
    patch: int = 8
    tower_layers: int = 4
    tower_width: int = 128
    tower_heads: int = 2
    tower_hidden: int = 384


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
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.25] * 3),
        wrapped,
        patch_size=size.patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )
