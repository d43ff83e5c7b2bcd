"""From checked tensors to a stock LLaVA: its config from the tensors' shapes, its weights without a second copy.

Knows transformers' classes; reads no file.
"""

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
from feathervlm.integrations.prismatic.registry import Llm, Recipe, Tower

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Tensors of one part of a checkpoint, and where they go."""

    tensors: Tensors
    moves: names.Moves


def parts(checkpoint: Mapping[str, Tensors], tower: Tensors, recipe: Recipe) -> dict[str, Part]:
    """All tensors that LLaVA takes, by part.

    Raises:
        PruningError: if names are unknown or missing.
    """
    clip = recipe.tower.kind == "clip"
    if any(name.startswith("embeddings.") for name in tower):
        moves = names.transformers_tower(names.depth(tower, "layers"), clip=clip)
    else:
        moves = names.timm_tower(names.depth(tower, "blocks"), clip=clip)
    llm = checkpoint[names.LLM]
    found = {
        names.TOWER: Part(tower, moves),
        names.PROJECTOR: Part(checkpoint[names.PROJECTOR], names.projector()),
        names.LLM: Part(llm, names.language(names.depth(llm, "layers"))),
    }
    names.check({name: (part.tensors, part.moves) for name, part in found.items()})
    return found


def assemble(found: Mapping[str, Part], recipe: Recipe, image_token: int) -> LlavaForConditionalGeneration:
    """The model, in the type of the language model's weights.

    Args:
        found: what `parts` returned.
        recipe: what the run's config.json says.
        image_token: id of the image placeholder; the one before it is the padding token's.

    Raises:
        PruningError: if shapes are not those of the recipe's parts, or of one another.
    """
    moved: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for title, part in found.items():
        for name, tensor in part.tensors.items():
            try:
                new = part.moves[name].apply(tensor)
            except ValueError as error:
                raise PruningError(f"{title}: {name} of shape {shape(tensor)} {error}.") from error
            moved |= new
            sources |= dict.fromkeys(new, f"{title}: {name}")
    config = LlavaConfig(
        vision_config=tower_config(recipe, moved),
        text_config=llm_config(recipe, moved, image_token - 1),
        image_token_index=image_token,
        image_seq_length=recipe.tower.patches,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default" if recipe.tower.kind == "clip" else "full",
        # The second to last block's output; the last block's weights are kept, though nothing reads them.
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
            f"The tensors' shapes do not fit together, as {recipe.tower_id} and {recipe.llm_id} take them: "
            f"{'; '.join(wrong)}. Give the weights that belong to this checkpoint."
        )
    dtype = moved["model.language_model.embed_tokens.weight"].dtype
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in moved.items()}, assign=True)
    model.config.dtype = dtype
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=image_token - 1)
    return model.eval()


def tower_config(recipe: Recipe, moved: Tensors) -> PreTrainedConfig:
    """Of the vision encoder: sizes from the tensors, all else from the registry.

    Raises:
        PruningError: if width or depth cannot be this encoder's.
    """
    tower = recipe.tower
    width = moved["model.vision_tower.post_layernorm.weight"].shape[0]
    layers = names.depth(moved, r"vision_tower\.encoder\.layers")
    _check_depth(recipe.tower_id, "blocks", tower, width, layers, tower.blocks)
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": moved["model.vision_tower.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // tower.head,
        "image_size": tower.size,
        "patch_size": tower.patch,
    }
    if tower.kind == "clip":
        return CLIPVisionConfig(**sizes, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    # timm's SigLIP has the exact GELU where transformers' has its approximation by tanh.
    return SiglipVisionConfig(**sizes, hidden_act="gelu", layer_norm_eps=1e-6, vision_use_head=False)


def llm_config(recipe: Recipe, moved: Tensors, pad_token: int) -> PreTrainedConfig:
    """Of the language model: sizes from the tensors, all else from the registry.

    Raises:
        PruningError: if width or depth cannot be this model's.
    """
    llm, layer = recipe.llm, "model.language_model.layers.0."
    rows, width = moved["model.language_model.embed_tokens.weight"].shape
    layers = names.depth(moved, r"language_model\.layers")
    _check_depth(recipe.llm_id, "layers", llm, width, layers, llm.layers)
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


def _check_depth(name: str, what: str, part: Tower | Llm, width: int, depth: int, real: int) -> None:
    if width < part.head or width % part.head:
        raise PruningError(f"{name} has heads of {part.head}, into which a width of {width} cannot be cut.")
    if width == part.width and depth != real:
        raise PruningError(f"{name} has {real} {what}, and these weights of the same width have {depth}.")
    if depth < 2:
        raise PruningError(f"These weights have {depth} {what} for {name}, and at least 2 are needed.")


def shape(tensor: Tensor) -> str:
    """Such as 729 x 1152."""
    return " x ".join(map(str, tensor.shape))
