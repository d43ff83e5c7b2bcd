"""Tiny random models built from configs, and inputs for them: no downloads, weights large enough that attention is
far from uniform (otherwise a wrong mask would go unnoticed)."""

import torch
import transformers as tf
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

VOCABULARY, IMAGE, PAD = 300, 290, 0
LAYERS, SIDE = 6, 6

TEXT_CONFIGS = {
    "llama": tf.LlamaConfig,
    "qwen2": tf.Qwen2Config,
    "qwen3": tf.Qwen3Config,
    "mistral": tf.MistralConfig,
    "phi3": tf.Phi3Config,
}


def sizes(**changes):
    """What all decoders have in common."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **changes,
    }


def text_config(kind="llama", **changes):
    shape = sizes()
    if kind == "phi3":
        shape.pop("head_dim")
    if kind == "mistral":
        shape["sliding_window"] = 24
    return TEXT_CONFIGS[kind](**{**shape, **changes})


def randomize(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                std = 1.0 if "embed_tokens" in name else 0.15
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    if not model.can_generate():
        return model.eval()
    # A generated placeholder could not be told from an image when the sequence is run again.
    model.generation_config.suppress_tokens = [IMAGE]
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def llava(text="llama", tower="clip", attention="sdpa", seed=0, depth=2, **changes):
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": depth,
        "num_attention_heads": 2,
        "image_size": 8 * SIDE,
        "patch_size": 8,
    }
    config = LlavaConfig(
        vision_config=(CLIPVisionConfig if tower == "clip" else SiglipVisionConfig)(**vision),
        text_config=text_config(text, **changes),
        image_token_id=IMAGE,
        image_seq_length=SIDE * SIDE,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    config._attn_implementation = attention
    model = randomize(LlavaForConditionalGeneration._from_config(config, attn_implementation=attention), seed)
    with torch.no_grad():
        # The first call leaves hooks of transformers' own on the vision tower; tests look for ours.
        model.base_model.get_image_features(torch.zeros(1, 3, 8 * SIDE, 8 * SIDE))
    return model


def llama(attention="sdpa", seed=0, kind="llama", **changes):
    config = text_config(kind, **changes)
    cls = {"llama": tf.LlamaForCausalLM, "qwen3": tf.Qwen3ForCausalLM}[kind]
    return randomize(cls._from_config(config, attn_implementation=attention), seed)


def words(count, generator):
    return torch.randint(5, 250, (count,), generator=generator).tolist()


def prompt(images, seed=0, before=4, between=3, after=6):
    """Token ids of a prompt with so many images."""
    generator = torch.Generator().manual_seed(1000 + seed)
    ids = [1, *words(before, generator)]
    for _ in range(images):
        ids += [IMAGE] * (SIDE * SIDE) + words(between, generator)
    return ids + words(after, generator)


def batch(*prompts, side="left"):
    """Inputs for prompts given as token ids, padded, with an image for every placeholder run."""
    longest = max(map(len, prompts))
    pads = [[PAD] * (longest - len(ids)) for ids in prompts]
    ids = torch.tensor([pad + ids if side == "left" else ids + pad for pad, ids in zip(pads, prompts, strict=True)])
    ones = [[0] * len(pad) for pad in pads]
    mask = torch.tensor(
        [
            zeros + [1] * len(p) if side == "left" else [1] * len(p) + zeros
            for zeros, p in zip(ones, prompts, strict=True)
        ]
    )
    pixels = [pixel(p, image) for p in prompts for image in range(p.count(IMAGE) // (SIDE * SIDE))]
    inputs = {"input_ids": ids, "attention_mask": mask}
    return {**inputs, "pixel_values": torch.stack(pixels)} if pixels else inputs


def pixel(ids, image):
    """Pixels that depend on the prompt they belong to, so that a sample keeps its images in any batch."""
    generator = torch.Generator().manual_seed(sum(ids) * 7 + image)
    return torch.randn(3, 8 * SIDE, 8 * SIDE, generator=generator)
