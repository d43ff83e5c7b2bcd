"""A view of a decoder: its layers, their attention modules, rotary tables and dimensions.

Modules and configs are read by their common names; where a model has other names, the error lists those that were
looked for.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from feathervlm.core.cost import LayerCost
from feathervlm.core.errors import Unprunable
from feathervlm.core.positions import Positions
from feathervlm.engine.blueprint import active_weights, blueprint
from feathervlm.engine.compiled import compiled_module

FLASH = "flash"
FUSED = "qkv_proj", "Wqkv"
"""Names of projections that make queries, keys and values at once, in this order."""


MLPS = "mlp", "feed_forward", "block_sparse_moe"
"""Names of the MLP of a layer."""
KEYS = ("full_attention", "sliding_attention", "chunked_attention")
"""Types of layers with a cache of keys and values."""


@dataclass(frozen=True, eq=False)
class DecoderView:
    """The decoder of a model.

    Args:
        model: A transformers model.

    Raises:
        Unprunable: If it cannot be pruned, whatever the schedule.
    """

    model: PreTrainedModel

    def __post_init__(self) -> None:
        if self.config.is_encoder_decoder:
            raise Unprunable(f"{type(self.model).__name__} is an encoder-decoder; only decoders work.")
        if getattr(self.config, "num_kv_shared_layers", 0):
            raise Unprunable(
                f"{type(self.model).__name__} shares keys and values between layers, which pruning breaks."
            )
        if self.attention.startswith("paged") or self.attention == "flex_attention":
            raise Unprunable(f"Attention {self.attention!r} is not supported; load the model with 'sdpa'.")
        if FLASH in self.attention and {"sliding_attention", "chunked_attention"} & set(self.layer_types):
            raise Unprunable(
                "Flash attention measures a sliding window in stored tokens, which pruning changes; load the model "
                "with attn_implementation='sdpa'."
            )

    @cached_property
    def base(self) -> nn.Module:
        """The model without its head, or heads: a model with one may be inside another one's."""
        base: Any = self.model.base_model
        inner = getattr(base, "base_model", base)
        return inner if hasattr(inner, "get_image_features") else base

    @cached_property
    def decoder(self) -> Any:
        """The module that owns the decoder layers."""
        decoder: Any = self.model.get_decoder()
        candidates: list[Any] = [decoder, getattr(decoder, "model", None)]
        for candidate in candidates:
            if isinstance(getattr(candidate, "layers", None), nn.ModuleList):
                return candidate
        raise Unprunable(f"{type(self.model).__name__} has no list of decoder layers (looked for .layers).")

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        return list(self.decoder.layers)[: self.config.num_hidden_layers]

    @cached_property
    def config(self) -> Any:
        """The decoder's config."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def attention(self) -> str:
        """The attention implementation in use."""
        return str(self.config._attn_implementation)

    @cached_property
    def layer_types(self) -> list[str]:
        """`full_attention`, `sliding_attention`, ... for every layer."""
        declared = getattr(self.config, "layer_types", None)
        if declared is not None:
            return list(declared)
        sliding = getattr(self.config, "sliding_window", None) and getattr(self.config, "use_sliding_window", True)
        return ["sliding_attention" if sliding else "full_attention"] * self.config.num_hidden_layers

    @cached_property
    def rotary_types(self) -> list[str]:
        """The kind of rotary tables of every layer: its layer type, unless the decoder declares other kinds."""
        declared = getattr(self.decoder, "rope_types", None)
        return list(declared) if isinstance(declared, list) else self.layer_types

    def keeps_keys(self, layer: int) -> bool:
        """Return whether a layer attends to cached keys; other layers carry a state along the sequence."""
        return self.layer_types[layer] in KEYS

    def is_causal(self, layer: int) -> bool:
        """Return whether a layer attends to previous tokens only; layers of an encoder of text attend to all."""
        return bool(getattr(self.attention_module(layer), "is_causal", True))

    def scoring_layer(self, requested: int) -> tuple[int, str | None]:
        """Return the layer to score with, and a note if it is not the requested one or sees only a part of the image.

        Raises:
            Unprunable: If there is none.
        """
        for layer in range(requested, -1, -1):
            if self.layer_types[layer] == "full_attention":
                note = None if layer == requested else f"scored with layer {layer}, the nearest with full attention"
                return layer, note
        if not self.keeps_keys(requested):
            full = [layer for layer, kind in enumerate(self.layer_types) if kind == "full_attention"]
            remedy = f"prune at layer {full[0] + 1} or later" if full else "use a method without scores"
            raise Unprunable(
                f"No layer of {type(self.model).__name__} up to {requested} has full attention to score with; {remedy}."
            )
        return requested, f"layer {requested} sees a part of the sequence; scores over the visual tokens look beyond it"

    def attention_module(self, layer: int) -> Any:
        """Return the self-attention module of a layer."""
        for name in ("self_attn", "attention", "attn"):
            module = getattr(self.layers[layer], name, None)
            if module is not None:
                return module
        raise Unprunable(f"Layer {layer} of {type(self.model).__name__} has no softmax attention to score with.")

    def mlp_module(self, layer: int) -> nn.Module:
        """Return the MLP, or the mixture of experts, of a layer."""
        module = mlp_of(self.layers[layer])
        if module is None:
            raise Unprunable(
                f"Layer {layer} of {type(self.model).__name__} has no MLP (looked for {', '.join(MLPS)}), so tokens "
                "cannot skip it; use leave='freeze' without skip=."
            )
        return module

    def input_norm(self, layer: int) -> nn.Module:
        """Return the norm before a layer's attention."""
        module = self.layers[layer]
        names = "input_layernorm", "operator_norm", "attn_norm"
        norm = next((norm for name in names if (norm := getattr(module, name, None)) is not None), None)
        if norm is None or getattr(module, "norm_after", False):
            raise Unprunable(
                f'{type(self.model).__name__} layers have no norm before their attention; score with layer="K-1".'
            )
        return norm

    def middle_norm(self, layer: int) -> nn.Module:
        """Return the norm of a layer between its attention and its MLP."""
        names = "pre_feedforward_layernorm", "post_attention_layernorm", "ffn_norm", "mlp_norm"
        for name in names:
            norm = getattr(self.layers[layer], name, None)
            if norm is not None:
                return norm  # type: ignore[no-any-return]  # a submodule by name
        raise Unprunable(
            f"Layer {layer} of {type(self.model).__name__} has no norm after its attention (looked for "
            f"{', '.join(names)}); choose a method that does not read its output."
        )

    def head_counts(self, layer: int) -> tuple[int, int, int]:
        """Return the query heads, key-value heads and head dimension of a layer."""
        heads = self.config.num_attention_heads
        module = self.attention_module(layer)
        dim = getattr(module, "head_dim", None) or self.config.hidden_size // heads
        return heads, getattr(self.config, "num_key_value_heads", None) or heads, dim

    def check_positions(self, policy: Positions) -> None:
        """Check that this model's positions allow a position policy.

        Raises:
            Unprunable: If they do not.
        """
        rotary: Any = getattr(self.decoder, "rotary_emb", None)
        allowed = policy == "preserve" or rotary is not None
        if policy in ("renumber", "stretch"):  # a place between two others means something along a line only
            declared = getattr(self.config, "rope_parameters", None) or {}
            kinds = [declared, *(kind for kind in declared.values() if isinstance(kind, dict))]
            axes = getattr(rotary, "mrope_section", None) or any(kind.get("mrope_section") for kind in kinds)
            allowed = allowed and not axes
        if allowed and policy == "renumber":  # decoding makes tables for positions of its own
            mixed = self.rotary_types != self.layer_types and len(set(self.rotary_types)) > 1
            allowed = not mixed and list(inspect.signature(rotary.forward).parameters) == ["x", "position_ids"]
        if not allowed:
            raise Unprunable(
                f"{type(self.model).__name__} does not let positions be moved by positions={policy!r}; use "
                "positions='preserve'."
            )

    @cached_property
    def costs(self) -> list[LayerCost]:
        """The cost of every layer, from the shapes that the config gives: the same however the weights are stored."""
        layers = self._blueprint or self.layers
        # A chunk is cached as a window of its length is.
        names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
        costs = []
        for index, (layer, kind) in enumerate(zip(layers[: len(self.layers)], self.layer_types, strict=True)):
            heads, kv_heads, dim = self.head_counts(index) if self.keeps_keys(index) else (0, 0, 0)
            weights = active_weights(layer, getattr(self.config, "num_experts_per_tok", None))
            window = getattr(self.config, names[kind], None) if kind in names else None
            causal = not self.keeps_keys(index) or self.is_causal(index)
            kv = 2 * kv_heads * dim
            mlp = mlp_of(layer)
            mlp_weights = 0 if mlp is None else active_weights(mlp, getattr(self.config, "num_experts_per_tok", None))
            parts = self.config.hidden_size * kv, mlp_weights
            costs.append(LayerCost(weights, heads * dim, kv, window, causal, *parts))
        return costs

    @cached_property
    def _blueprint(self) -> list[nn.Module] | None:
        return blueprint(compiled_module(self.decoder) or self.decoder)

    @property
    def cost_notes(self) -> list[str]:
        """What to know about the costs."""
        if self._blueprint is not None:
            return []
        name = type(self.decoder).__name__
        return [f"FLOPs are of the weights as they are stored, for {name} cannot be made from its config alone"]


def mlp_of(layer: nn.Module) -> nn.Module | None:
    """Return the MLP, or the mixture of experts, of a decoder layer; None if there is none of a known name."""
    found = (getattr(layer, name, None) for name in MLPS)
    return next((module for module in found if isinstance(module, nn.Module)), None)


def fused_projection(module: Any) -> Any:
    """Return the projection that makes queries, keys and values at once, in this order; None if there is none."""
    return next((part for name in FUSED if (part := getattr(module, name, None)) is not None), None)


def line_ids(ids: Any) -> Tensor:
    """Return position ids of shape (batch, sequence), one number per token.

    Raises:
        Unprunable: If they are something else.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise Unprunable("Positions of this model are not one number per token; use positions='preserve'.")
    return ids
