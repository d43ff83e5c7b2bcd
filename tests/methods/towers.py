"""Matching and clustering in plain Python, and vision towers run by hand, image by image and in float64.

Layers are taken apart into their linear maps and norms; attention, merging and unfolding are written out here.
"""

import copy

import numpy as np
import torch

BLOCK = 2
"""Rows and columns of patches in a token of Qwen's."""


def matches(metric, merges, protected=0, window=None):
    """ToMe's groups of token numbers, in the order of the merged tokens: one pair of tokens at a time.

    With the `window` of each, only tokens of one window go together, and windows come one after the other.
    """
    wide = np.asarray(metric, dtype=np.float64)
    window = [0] * len(wide) if window is None else window
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    evens, odds = range(0, len(unit), 2), range(1, len(unit), 2)
    edges = []
    for a in evens:
        pairs = [(np.round(np.float32(unit[a] @ unit[b]) * 2**23), -b) for b in odds if window[a] == window[b]]
        if a >= protected and pairs:
            similar, b = max(pairs)
            edges.append((-similar, a, -b))
    into = {b: [b] for b in odds}
    leaving = sorted(edges)[:merges]
    for _, a, b in leaving:
        into[b].append(a)
    gone = {a for _, a, _ in leaving}
    groups = [[a] for a in evens if a not in gone] + [into[b] for b in odds]
    return sorted(groups, key=lambda group: window[group[0]])


def members(place):
    """Token numbers of each group, of a `place` (tokens,)."""
    groups = [[] for _ in range(max(place.tolist()) + 1)]
    for token, where in enumerate(place.tolist()):
        groups[where].append(token)
    return groups


def clusters(features, count, neighbors, reach, locality, where=None, window=None):
    """AiluRus' groups of patch numbers, the anchor first, in the order of the anchors.

    Patches lie in a square, or `where` says (row, column) of each. With the `window` of each, only patches of one
    window go together, and none is without an anchor.
    """
    features = np.asarray(features, dtype=np.float32).astype(np.float64)
    total, side = len(features), round(len(features) ** 0.5)
    where = [(i // side, i % side) for i in range(total)] if where is None else where
    window = [0] * total if window is None else window
    apart = [[(a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 for b in where] for a in where]
    far = np.full((total, total), np.inf)
    for i in range(total):
        for rank, j in enumerate(sorted(range(total), key=lambda j, i=i: (apart[i][j], j))[: reach + 1]):
            if window[i] == window[j]:
                weight = locality + (1 - locality) * rank / reach
                far[i, j] = weight * np.linalg.norm(features[i] - features[j]) / features.shape[1] ** 0.5
    sparsity = []
    for i in range(total):
        nearest = [value for value in sorted(far[i])[:neighbors] if np.isfinite(value)]
        sparsity.append(sum(value**2 for value in nearest) / len(nearest))
    widest = far[np.isfinite(far)].max()
    scores = []
    for i in range(total):
        rivals = [far[i, j] for j in range(total) if (sparsity[j], j) < (sparsity[i], i) and np.isfinite(far[i, j])]
        scores.append(np.exp(-sparsity[i]) * min(rivals, default=widest))
    best = sorted(range(total), key=lambda i: (-scores[i], i))
    needed = [next(i for i in best if window[i] == one) for one in sorted(set(window))]
    others = [i for i in best if i not in needed]
    anchors = sorted(needed + others[: max(count - len(needed), 0)])
    groups = {anchor: [anchor] for anchor in anchors}
    for i in range(total):
        if i not in groups:
            inside = [anchor for anchor in anchors if window[anchor] == window[i]]
            near = [anchor for anchor in inside if np.isfinite(far[i, anchor])]
            measure = far[i] if near else apart[i]
            groups[min(near or inside, key=lambda anchor: (measure[anchor], anchor))].append(i)
    return [groups[anchor] for anchor in anchors]


def run(tower, pixels, *, between=None, before=None, proportional=False):
    """States before the first layer and after every layer, of all patches, and the tokens seen in each layer.

    Args:
        tower: a CLIP or SigLIP tower.
        pixels: (1, 3, height, width), one image.
        between: given a layer's number and keys (tokens, dim), mean over heads, the groups to merge after its
            attention: lists of token numbers, in the order of the merged tokens. None for no merging.
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


def rotated(vectors, where):
    """Vectors (tokens, dim) rotated by row in their first and third quarter, by column in the others."""
    quarter = vectors.shape[1] // 4
    speed = 1 / 10000 ** (torch.arange(quarter) / quarter)
    angle = torch.cat([torch.tensor(where)[:, axis : axis + 1] * speed for axis in (0, 1)], 1)
    one, two = vectors[:, : 2 * quarter], vectors[:, 2 * quarter :]
    return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], 1)


def run_packed(tower, pixels, shape, window, full, *, between=None, before=None, proportional=False):
    """Features of one picture's tokens, the tokens that entered each layer, and in the end the patches of each.

    Args:
        tower: of Qwen2-VL or Qwen2.5-VL.
        pixels: (patches, 96).
        shape: rows and columns of patches.
        window: rows and columns of a window, None if there are none.
        full: layers that look at the whole picture.
        between: given a layer's number, its rotated keys (tokens, dim), mean over heads, and the window of each token,
            groups to merge after its attention; or None.
        before: given a layer's number, the states (tokens, dim) that enter it, the place and the window of each token,
            groups to merge before it; or None.
        proportional: attend to a token as often as it stands for patches.
    """
    rows, cols = shape
    tower = copy.deepcopy(tower).double()

    def at(patch):
        row, col = patch
        around = (row // window, col // window) if window else (0, 0)
        return (*around, row // BLOCK, col // BLOCK, row, col)

    given = sorted(((row, col) for row in range(rows) for col in range(cols)), key=lambda patch: at(patch)[2:])
    order = sorted(given, key=at)
    x = tower.patch_embed(pixels.double())[[given.index(patch) for patch in order]]
    members, numbers = [[patch] for patch in order], sorted({at(patch)[:2] for patch in order})

    def windows(layers):
        split = any(layer not in full for layer in layers)
        return [numbers.index(at(group[0])[:2]) if split else 0 for group in members]

    def merge(groups):
        nonlocal x, members
        merged, joined = [], []
        for group in groups:
            sizes = [len(members[i]) for i in group]
            merged.append(sum(size * x[i] for size, i in zip(sizes, group, strict=True)) / sum(sizes))
            joined.append(sorted((patch for i in group for patch in members[i]), key=at))
        x, members = torch.stack(merged), joined

    seen, depth = [], len(tower.blocks)
    for number, layer in enumerate(tower.blocks):
        groups = before(number, x, [group[0] for group in members], windows(range(number, depth))) if before else None
        if groups:
            merge(groups)
        seen.append(len(x))
        inside, heads, outputs, keys = torch.tensor(windows([number])), layer.attn.num_heads, [], []
        query, key, value = layer.attn.qkv(layer.norm1(x)).view(len(x), 3, heads, -1).unbind(1)
        for head in range(heads):
            firsts = [group[0] for group in members]
            one, two = rotated(query[:, head], firsts), rotated(key[:, head], firsts)
            logits = one @ two.T / one.shape[1] ** 0.5
            if proportional:
                logits = logits + torch.tensor([len(group) for group in members]).double().log()
            logits = logits.masked_fill(inside[:, None] != inside, float("-inf"))
            outputs.append(logits.softmax(-1) @ value[:, head])
            keys.append(two)
        x = x + layer.attn.proj(torch.cat(outputs, 1))
        groups = between(number, sum(keys) / heads, windows(range(number + 1, depth))) if between else None
        if groups:
            merge(groups)
        x = x + layer.mlp(layer.norm2(x))
    whole = torch.zeros(len(given), x.shape[1], dtype=x.dtype)
    for state, group in zip(x, members, strict=True):
        whole[[given.index(patch) for patch in group]] = state
    return tower.merger(whole), seen, members
