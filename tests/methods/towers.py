"""A vision tower run by hand, image by image and in float64, with merging where a test says so.

Layers are taken apart into their linear maps and norms; attention, merging and unfolding are written out here.
"""

import copy

import torch


def run(tower, pixels, *, between=None, before=None, proportional=False):
    """States before the first layer and behind every layer, of all patches, and the tokens seen in each layer.

    Args:
        tower: a CLIP or SigLIP tower.
        pixels: (1, 3, height, width), one image.
        between: given a layer's number and keys (tokens, dim), mean over heads, the groups to merge behind its
            attention: lists of token numbers, in the order of the tokens behind. None for no merging.
        before: given a layer's number and the states (tokens, dim) that enter it, likewise.
        proportional: attend to a token as often as it stands for patches.

    Returns:
        (states, seen): a list of (tokens, dim), and a list of (tokens in attention, tokens in the MLP).
    """
    tower = copy.deepcopy(tower).double()
    x = tower.embeddings(pixels.double())
    if hasattr(tower, "pre_layrnorm"):
        x = tower.pre_layrnorm(x)
    x = x[0]
    members = [[i] for i in range(len(x))]  # of every token, the first ones that it stands for

    def merge(groups):
        nonlocal x, members
        rows, joined = [], []
        for group in groups:
            sizes = [len(members[i]) for i in group]
            rows.append(sum(size * x[i] for size, i in zip(sizes, group, strict=True)) / sum(sizes))
            joined.append([first for i in group for first in members[i]])
        x, members = torch.stack(rows), joined

    def unfolded():
        whole = torch.zeros(sum(map(len, members)), x.shape[1], dtype=x.dtype)
        for row, group in zip(x, members, strict=True):
            whole[group] = row
        return whole

    states, seen = [], []
    for number, layer in enumerate(tower.encoder.layers):
        groups = before(number, x) if before else None
        if groups is not None:
            merge(groups)
        if number == 0:
            states.append(unfolded())
        attention, normed = layer.self_attn, layer.layer_norm1(x)
        heads, outputs, keys = attention.num_heads, [], []
        for head in range(heads):
            part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            query, key, value = (getattr(attention, f"{name}_proj")(normed)[:, part] for name in ("q", "k", "v"))
            logits = query @ key.T / attention.head_dim**0.5
            if proportional:
                logits = logits + torch.tensor([len(group) for group in members]).double().log()
            outputs.append(logits.softmax(-1) @ value)
            keys.append(key)
        x = x + attention.out_proj(torch.cat(outputs, 1))
        looked = len(x)
        groups = between(number, sum(keys) / heads) if between else None
        if groups is not None:
            merge(groups)
        seen.append((looked, len(x)))
        x = x + layer.mlp(layer.layer_norm2(x))
        states.append(unfolded())
    return states, seen
