"""Builds a stock LLaVA from tensors: its config from their shapes, its weights without a second copy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
    SiglipVisionConfig,
)

from feathervlm.core.errors import PruningError
from feathervlm.integrations.prismatic import names
from feathervlm.integrations.prismatic.registry import LanguageBackbone, RunFacts, VisionBackbone
from feathervlm.utils.weights import check_weights

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class CheckpointPart:
    """The tensors of one part of a checkpoint, and where each goes."""

    tensors: Tensors
    moves: names.Moves


def parts(checkpoint: Mapping[str, Tensors], encoder: Tensors, facts: RunFacts) -> dict[str, CheckpointPart]:
    """Return all tensors that LLaVA uses, by part.

    Args:
        checkpoint: Tensors of the checkpoint by part.
        encoder: Tensors of the vision encoder.
        facts: The model that the run's config.json describes.

    Raises:
        PruningError: If names are unknown or missing.
    """
    clip = facts.vision.kind == "clip"
    if any(name.startswith("embeddings.") for name in encoder):
        moves = names.transformers_tower(names.depth(encoder, "layers"), clip=clip)
    else:
        moves = names.timm_tower(names.depth(encoder, "blocks"), clip=clip)
    llm = checkpoint[names.LLM]
    result = {
        names.VISION: CheckpointPart(encoder, moves),
        names.PROJECTOR: CheckpointPart(checkpoint[names.PROJECTOR], names.projector()),
        names.LLM: CheckpointPart(llm, names.language(names.depth(llm, "layers"))),
    }
    names.check({name: (part.tensors, part.moves) for name, part in result.items()})
    return result


def assemble(parts: Mapping[str, CheckpointPart], facts: RunFacts, image_token: int) -> LlavaForConditionalGeneration:
    """Return the model, in the type of the language model's weights.

    Args:
        parts: Tensors as `parts` returns them.
        facts: The model that the run's config.json describes.
        image_token: Token id of the image placeholder; the id before it is that of the padding token.

    Raises:
        PruningError: If the shapes do not fit the model or one another, or weights are integers or not finite.
    """
    moved: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for title, part in parts.items():
        for name, tensor in part.tensors.items():
            try:
                new = part.moves[name].apply(tensor)
            except ValueError as error:
                raise PruningError(f"{title}: {name} of shape {shape(tensor)} {error}.") from error
            moved |= new
            sources |= dict.fromkeys(new, f"{title}: {name}")
    config = LlavaConfig(
        vision_config=vision_config(facts, moved),
        text_config=llm_config(facts, moved, image_token - 1),
        image_token_index=image_token,
        image_seq_length=facts.vision.patches,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default" if facts.vision.kind == "clip" else "full",
        # LLaVA uses the output of the second to last block; the weights of the last are kept but not used.
        vision_feature_layer=-2,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    wrong = [
        f"{sources[name]} is {shape(moved[name])} and should be {shape(empty)}"
        for name, empty in model.state_dict().items()
        if moved[name].shape != empty.shape
    ]
    if wrong:
        raise PruningError(
            f"The shapes of the tensors are not those of {facts.vision_id} and {facts.llm_id}: "
            f"{'; '.join(wrong)}. Give the weights that belong to this checkpoint."
        )
    integer = next((name for name, tensor in moved.items() if not tensor.is_floating_point()), None)
    if integer is not None:
        kind = str(moved[integer].dtype).removeprefix("torch.")
        raise PruningError(f"{sources[integer]} holds {kind} numbers; give weights in floating point.")
    dtype = moved["model.language_model.embed_tokens.weight"].dtype
    weights = {name: tensor.to(dtype) for name, tensor in moved.items()}
    check_weights(((sources[name], tensor) for name, tensor in weights.items()), "the checkpoint")
    model.load_state_dict(weights, assign=True)
    model.config.dtype = dtype
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=image_token - 1)
    return model.eval()


def vision_config(facts: RunFacts, moved: Tensors) -> PreTrainedConfig:
    """Return the config of the vision encoder: sizes from the tensors, everything else from the registry.

    Raises:
        PruningError: If this encoder cannot have that width or depth.
    """
    encoder = facts.vision
    width = moved["model.vision_tower.post_layernorm.weight"].shape[0]
    layers = names.depth(moved, r"vision_tower\.encoder\.layers")
    _check_depth(facts.vision_id, "blocks", encoder, width, layers, encoder.blocks)
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": moved["model.vision_tower.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // encoder.head,
        "image_size": encoder.size,
        "patch_size": encoder.patch,
    }
    if encoder.kind == "clip":
        return CLIPVisionConfig(**sizes, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    # timm's SigLIP has the exact GELU where transformers' has its approximation by tanh.
    return SiglipVisionConfig(**sizes, hidden_act="gelu", layer_norm_eps=1e-6, vision_use_head=False)


def llm_config(facts: RunFacts, moved: Tensors, pad_token: int) -> PreTrainedConfig:
    """Return the config of the language model: sizes from the tensors, everything else from the registry.

    Raises:
        PruningError: If this model cannot have that width or depth.
    """
    llm, layer = facts.llm, "model.language_model.layers.0."
    rows, width = moved["model.language_model.embed_tokens.weight"].shape
    layers = names.depth(moved, r"language_model\.layers")
    _check_depth(facts.llm_id, "layers", llm, width, layers, llm.layers)
    sizes: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": moved[f"{layer}mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": moved[f"{layer}self_attn.q_proj.weight"].shape[0] // llm.head,
        "num_key_value_heads": moved[f"{layer}self_attn.k_proj.weight"].shape[0] // llm.head,
        "head_dim": llm.head,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": pad_token,
        "tie_word_embeddings": False,
    }
    if llm.kind == "mistral":
        return MistralConfig(**sizes, max_position_embeddings=32768, sliding_window=4096)
    return LlamaConfig(**sizes, max_position_embeddings=4096)


def _check_depth(
    name: str, what: str, part: VisionBackbone | LanguageBackbone, width: int, depth: int, real: int
) -> None:
    if width < part.head or width % part.head:
        raise PruningError(
            f"{name} has heads of width {part.head}, and the weights' width {width} is not a multiple of it; give its "
            "own weights."
        )
    if width == part.width and depth != real:
        raise PruningError(
            f"{name} has {real} {what}, and these weights of the same width have {depth}; give its own weights."
        )
    if depth < 2:
        raise PruningError(
            f"These weights have {depth} {what} for {name}, and at least 2 are needed; give its own weights."
        )


def shape(tensor: Tensor) -> str:
    """Return the shape of a tensor as text, such as 729 x 1152."""
    return " x ".join(map(str, tensor.shape))
