"""Decoder layers with the interface that serving engines have, made of the weights of a transformers model.

They keep no cache and cannot run a prompt on their own; as in a serving engine, projections take one row per token and
return a pair, and queries, keys and values have one projection.
"""

from types import SimpleNamespace

import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class Fused(nn.Module):
    """A projection to the heads that one rank has."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, hidden):
        assert hidden.dim() == 2
        return torch.cat([hidden @ weight.T + bias for weight, bias in self.parts], -1), None


class Row(nn.Module):
    def __init__(self, linear, columns):
        super().__init__()
        self.linear, self.columns = linear, columns

    def forward(self, hidden):
        assert hidden.dim() == 2
        return hidden @ self.linear.weight[:, self.columns].T, None


class Rotary(nn.Module):
    """Rotates queries and keys of shape (tokens, width) in place, as serving engines do."""

    is_neox_style = True

    def __init__(self, rotary, dim):
        super().__init__()
        self.rotary, self.rotary_dim = rotary, dim

    def forward(self, positions, query, key):
        ids = positions[:, None] if positions.dim() == 2 else positions[None]
        cos, sin = self.rotary(query, ids)

        def heads(states):
            return states.view(1, len(states), -1, self.rotary_dim).transpose(1, 2)

        rotated = apply_rotary_pos_emb(heads(query), heads(key), cos, sin)
        for states, new in zip((query, key), rotated, strict=True):
            states.copy_(new.transpose(1, 2).reshape(states.shape))
        return query, key


class Attention(nn.Module):
    def __init__(self, attention, rotary, config, rank=0, ranks=1):
        super().__init__()
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.total_num_heads, self.total_num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.num_heads = self.total_num_heads // ranks
        self.num_kv_heads = max(self.total_num_kv_heads // ranks, 1)
        self.q_size, self.kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shared = max(ranks // self.total_num_kv_heads, 1)

        def part(linear, size, number):
            rows = slice(number * size, (number + 1) * size)
            bias = torch.zeros(len(linear.weight)) if linear.bias is None else linear.bias
            return linear.weight[rows].detach(), bias[rows].detach()

        kv = [(linear, self.kv_size, rank // shared) for linear in (attention.k_proj, attention.v_proj)]
        self.qkv_proj = Fused([part(attention.q_proj, self.q_size, rank), *(part(*one) for one in kv)])
        self.o_proj = Row(attention.o_proj, slice(rank * self.q_size, (rank + 1) * self.q_size))
        self.rotary_emb = rotary
        for name in ("q_norm", "k_norm"):
            if hasattr(attention, name):
                setattr(self, name, getattr(attention, name))


class Layer(nn.Module):
    def __init__(self, layer, rotary, config, **rank):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.mlp = layer.mlp
        self.self_attn = Attention(layer.self_attn, rotary, config, **rank)


def served_layers(model, rank=0, ranks=1):
    """The layers of a rank, and the text config."""
    text, config = model.model.language_model, model.config.get_text_config()
    rotary = Rotary(text.rotary_emb, text.layers[0].self_attn.head_dim)
    return SimpleNamespace(
        layers=[Layer(layer, rotary, config, rank=rank, ranks=ranks) for layer in text.layers]
    ), config
