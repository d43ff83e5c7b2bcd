"""The decoder layers of a serving engine, with the interface of the layers of transformers.

A serving engine's layers keep a cache of pages and take the tokens of many requests as one sequence. These wrappers
run their projections, norms and MLPs, whose weights may be quantized or sharded, on padded prompts and without a cache.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from feathervlm.core.errors import Unprunable

Gather = Callable[[Tensor], Tensor]
"""A function that joins the parts of a tensor that the ranks of a tensor-parallel group have, along the last dimension.
"""


class ByToken(nn.Module):
    """A module that takes one row per token, (tokens, dim), applied to a batch of prompts, (batch, sequence, dim).

    Args:
        module: The module; of a tuple that it returns the first part counts.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the module's output for every token."""
        output = self.module(hidden.reshape(-1, hidden.shape[-1]))
        output = output[0] if isinstance(output, tuple) else output
        return output.view(*hidden.shape[:-1], output.shape[-1])


class ServedProjection(nn.Module):
    """The fused projection to queries, keys and values of all heads, normed where the layer norms them.

    Args:
        attention: Attention module of the serving engine.
        gather: Joins the heads of all ranks.
    """

    def __init__(self, attention: Any, gather: Gather) -> None:
        super().__init__()
        self.attention, self.gather = attention, gather
        self.project = ByToken(attention.qkv_proj)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return queries, keys and values of all heads side by side: (batch, sequence, width)."""
        attention = self.attention
        sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        query, key, value = self.project(hidden).split(sizes, dim=-1)
        query, key = (self._normed(name, states) for name, states in (("q", query), ("k", key)))
        if attention.num_heads == attention.total_num_heads:
            return torch.cat([query, key, value], -1)
        parts = [self.gather(states.contiguous()) for states in (query, key, value)]
        kv_width = attention.total_num_kv_heads * attention.head_dim
        copies = parts[1].shape[-1] // kv_width  # ranks that share a key-value head
        if copies > 1:
            parts[1:] = [self._without_copies(states, copies) for states in parts[1:]]
        return torch.cat(parts, -1)

    def _without_copies(self, states: Tensor, copies: int) -> Tensor:
        return states.unflatten(-1, (-1, self.attention.head_dim))[..., ::copies, :].flatten(-2)

    def _normed(self, name: str, states: Tensor) -> Tensor:
        norm = getattr(self.attention, f"{name}_norm", None)
        if norm is None:
            return states
        by_head = states.reshape(-1, self.attention.head_dim)
        normed: Tensor = norm(by_head)
        return normed.view(states.shape)


class ServedAttention(nn.Module):
    """The self-attention of a layer, on whole prompts.

    Args:
        attention: Attention module of the serving engine.
        gather: Joins the heads of all ranks.
        rank: Rank of this process in the tensor-parallel group.
    """

    def __init__(self, attention: Any, gather: Gather, rank: int) -> None:
        super().__init__()
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.heads, self.kv_heads = attention.total_num_heads, attention.total_num_kv_heads
        self.qkv_proj = ServedProjection(attention, gather)
        self.output = ByToken(attention.o_proj)
        self.own = slice(rank * attention.q_size, (rank + 1) * attention.q_size)

    def forward(self, hidden: Tensor, mask: Tensor | None, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Return the output of the attention, (batch, sequence, dim); without a mask it is causal."""
        heads = self.qkv_proj(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        query, key = apply_rotary_pos_emb(query, key, *tables)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=self.scaling, enable_gqa=True
        )
        return self.output(attended.transpose(1, 2).flatten(2)[..., self.own].contiguous())


class ServedLayer(nn.Module):
    """A decoder layer with a norm before its attention and one before its MLP.

    Args:
        layer: Layer of the serving engine.
        gather: Joins the heads of all ranks.
        rank: Rank of this process in the tensor-parallel group.
    """

    def __init__(self, layer: Any, gather: Gather, rank: int) -> None:
        super().__init__()
        self.input_layernorm = ByToken(layer.input_layernorm)
        self.self_attn = ServedAttention(layer.self_attn, gather, rank)
        self.post_attention_layernorm = ByToken(layer.post_attention_layernorm)
        self.mlp = ByToken(layer.mlp)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the states that leave the layer; arguments as those of a layer of transformers."""
        assert position_embeddings is not None
        hidden_states = hidden_states + self.self_attn(
            self.input_layernorm(hidden_states), attention_mask, position_embeddings
        )
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class ServedRotary(nn.Module):
    """The rotary tables of a serving engine's rotary module, in the form of those of transformers.

    The module rotates queries and keys at once and does not return its tables. A vector that is one in its first half
    and zero in its second half rotates to the cosines and the sines.

    Args:
        rotary: Rotary module of the serving engine.
        head_dim: Width of a head.
    """

    def __init__(self, rotary: Any, head_dim: int) -> None:
        super().__init__()
        self.rotary, self.head_dim = rotary, head_dim

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each of shape (batch, sequence, head_dim).

        Args:
            states: Tensor of the type and device to make them in.
            position_ids: Positions, long (batch, sequence) or (axes, batch, sequence).
        """
        count, half = position_ids.shape[-2:].numel(), self.head_dim // 2
        probe = states.new_zeros(count, self.head_dim)
        probe[:, :half] = 1
        rotated = self.rotary(position_ids.flatten(-2), probe, probe.clone())[0].view(
            *position_ids.shape[-2:], self.head_dim
        )
        cos, sin = rotated.split(half, dim=-1)
        return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)


class NoLayer(nn.Module):
    """The place of a layer in a decoder that ends before its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Identity()

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """Return the states."""
        return hidden_states


class ServedDecoder(nn.Module):
    """Decoder layers of a serving engine that run on whole prompts, with the parts that `DecoderView` reads.

    Args:
        layers: Layers of the serving engine; None for methods that need no scoring pass.
        config: Config of the text model, as transformers reads it.
        gather: Joins the heads of all ranks of a tensor-parallel group.
        rank: Rank of this process in that group.

    Raises:
        Unprunable: If the layers are of another structure than these wrappers know.
    """

    def __init__(self, layers: Any, config: Any, gather: Gather = lambda states: states, rank: int = 0) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self.config._attn_implementation = "sdpa"
        self.config.is_encoder_decoder = False
        self.rotary_emb: ServedRotary | None = None
        if layers is None:
            self.layers = nn.ModuleList(NoLayer() for _ in range(self.config.num_hidden_layers))
        else:
            for layer in layers:
                _check(layer)
            self.layers = nn.ModuleList(ServedLayer(layer, gather, rank) for layer in layers)
            self.rotary_emb = ServedRotary(layers[0].self_attn.rotary_emb, layers[0].self_attn.head_dim)
        self.eval()

    @property
    def base_model(self) -> nn.Module:
        """The model without its head, which is this one."""
        return self

    def get_decoder(self) -> nn.Module:
        """Return the module that owns the layers."""
        return self

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool = False,
        past_key_values: None = None,
    ) -> Tensor:
        """Return the states that leave the last layer.

        Args:
            inputs_embeds: Embeddings of shape (batch, sequence, dim).
            position_ids: Positions, long (batch, sequence) or (axes, batch, sequence).
            attention_mask: False on padding, which follows the prompts, bool (batch, sequence); None for no padding.
            use_cache: False.
            past_key_values: None.
        """
        mask, tables = None, None if self.rotary_emb is None else self.rotary_emb(inputs_embeds, position_ids)
        if attention_mask is not None:
            sequence = inputs_embeds.shape[1]
            causal = torch.ones(sequence, sequence, dtype=torch.bool, device=inputs_embeds.device).tril()
            mask = (causal & attention_mask.bool()[:, None]) | torch.eye(sequence, dtype=torch.bool).to(causal.device)
            mask = mask[:, None]
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, position_ids=position_ids, position_embeddings=tables)
        return hidden


def _check(layer: Any) -> None:
    names = "input_layernorm", "self_attn", "post_attention_layernorm", "mlp"
    inside = "qkv_proj", "o_proj", "rotary_emb", "total_num_heads", "total_num_kv_heads", "q_size", "kv_size"
    missing = [name for name in names if not hasattr(layer, name)]
    missing += [name for name in inside if not hasattr(getattr(layer, "self_attn", None), name)]
    norms = [name for name, _ in layer.named_children() if "norm" in name and name not in names]
    if missing or norms:
        raise Unprunable(
            f"{type(layer).__name__} is a decoder layer {f'without {missing[0]}' if missing else f'with {norms[0]}'}, "
            "which no scoring pass is written for; choose a method without one."
        )
    rotary = layer.self_attn.rotary_emb
    if not rotary.is_neox_style or rotary.rotary_dim != layer.self_attn.head_dim:
        raise Unprunable(
            f"{type(layer).__name__} rotates parts of its heads, or pairs, which no scoring pass is written for; "
            "choose a method without one."
        )
