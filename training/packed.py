"""A forward pass over many questions about one image: each question attends to the image and to itself.

It runs the layers of a stock Llama decoder with matrix products in `product_type` and processes the image once, not
for every question. The result is that of the stock forward for each question alone, up to rounding.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaModel

from training.machine import product_type

HIDDEN = -1e9
"""Added to the scores of positions that must not be attended to."""


def run(
    decoder: LlamaModel,
    prefix: Tensor,
    questions: Tensor | None = None,
    segments: Tensor | None = None,
    *,
    taps: Collection[int] = (),
    skip: Collection[int] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the hidden states after the last norm, and those inside the decoder that are asked for.

    Args:
        decoder: Decoder, whose weights are used in `product_type`.
        prefix: Embeddings of shape (batch, M, width) that every question attends to: the start token and the image.
        questions: Embeddings of shape (batch, R, T, width): rows of one or several questions in sequence, padded at
            the end. Each question follows the prefix directly and attends to nothing else of its row.
        segments: Number of the question that each token belongs to, of shape (batch, R, T); by default a row is one
            question.
        taps: Numbers of layers after which states are returned, too.
        skip: Layers that are left out, to measure what they contribute. Taps count them as if they were there.

    Returns:
        States of shape (batch, R, T, width) or, without questions, (batch, M, width), and by tap the states after so
        many layers, of the same shape.
    """
    batch, length, width = prefix.shape
    config = decoder.config
    heads = config.num_attention_heads
    size = config.head_dim
    count, reach = (0, 0) if questions is None else questions.shape[1:3]
    device = prefix.device
    low = product_type(device.type)
    positions = torch.arange(length, device=device).expand(batch, -1)
    if questions is not None:
        if segments is None:
            segments = torch.zeros(questions.shape[:3], dtype=torch.long, device=device)
        alike = (segments[..., None] == segments[..., None, :]).tril()
        positions = torch.cat([positions, length - 1 + alike.sum(-1).flatten(1)], 1)
        apart = torch.where(alike, 0.0, HIDDEN).to(low)[:, None]
    cosine, sine = (table[:, None].to(low) for table in decoder.rotary_emb(prefix, positions))
    state = prefix if questions is None else torch.cat([prefix, questions.flatten(1, 2)], 1)
    used = [i for i in range(len(decoder.layers)) if i not in skip]
    tapped: dict[int, Tensor] = {}

    def shape(states: Tensor) -> Tensor:
        return states if questions is None else states[:, -count * reach :].unflatten(1, (count, reach))

    for i, layer in enumerate(decoder.layers):
        if i in taps:
            tapped[i] = shape(state.float())
        if i in skip:
            continue
        attention = layer.self_attn
        normed = norm(layer.input_layernorm, state).to(low)
        weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).to(low)
        query, key, value = F.linear(normed, weight).view(batch, -1, 3, heads, size).permute(2, 0, 3, 1, 4)
        query, key = rotate(query, cosine, sine) * size**-0.5, rotate(key, cosine, sine)
        # Unlike slices, the gradients of a split are joined without zeros.
        before, after = zip(*(part.split([length, count * reach], 2) for part in (query, key, value)), strict=True)
        last = questions is not None and i == used[-1]
        parts = [] if last else [causal_attention(*before)]
        if questions is not None:
            _, known, told = before
            own = [part.unflatten(2, (count, reach)) for part in after]
            inner = own[0] @ own[1].transpose(-1, -2) + apart
            scores = torch.cat([after[0] @ known.transpose(-1, -2), inner.flatten(2, 3)], -1).softmax(-1)
            outside, inside = scores.split([length, reach], -1)
            mixed = outside @ told + (inside.unflatten(2, (count, reach)) @ own[2]).flatten(2, 3)
            parts.append(mixed)
        if last:
            state = state[:, length:]
        mixed = torch.cat(parts, 2).transpose(1, 2).flatten(2)
        state = state + F.linear(mixed, attention.o_proj.weight.to(low))
        normed = norm(layer.post_attention_layernorm, state).to(low)
        mlp = layer.mlp
        gate = F.silu(F.linear(normed, mlp.gate_proj.weight.to(low)))
        state = state + F.linear(gate * F.linear(normed, mlp.up_proj.weight.to(low)), mlp.down_proj.weight.to(low))
    return shape(F.rms_norm(state.float(), (width,), decoder.norm.weight, decoder.norm.variance_epsilon)), tapped


def unit(state: Tensor) -> Tensor:
    """Return states with a root mean square of 1, for heads on early layers."""
    return F.rms_norm(state, state.shape[-1:], eps=1e-6)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return causal attention of scaled queries, of shape (batch, heads, length, size)."""
    if query.dtype is torch.float32:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    # On a CPU with instructions for bfloat16, explicit scores take less time.
    length = query.shape[2]
    causal = torch.full((length, length), HIDDEN, device=query.device).triu(1).to(query.dtype)
    return (query @ key.transpose(-1, -2) + causal).softmax(-1) @ value


def norm(module: nn.Module, state: Tensor) -> Tensor:
    """Apply Llama's RMSNorm."""
    return F.rms_norm(state, state.shape[-1:], module.weight.to(state.dtype), module.variance_epsilon)


def rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply RoPE to vectors of shape (batch, heads, length, size)."""
    one, two = vectors.chunk(2, -1)
    return vectors * cosine + torch.cat([-two, one], -1) * sine
