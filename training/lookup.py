"""Measures in which layer the last token looks at what it is asked for, in a model under training.

`scripts/attention_on_target.py` measures the same on exported weights, through the library.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from training import text
from training.align import see
from training.build import BOS, to_pixels
from training.packed import norm, rotate
from training.world.scenes import COLOURS, SHAPES, SIDE, SIZES
from training.world.tasks import sample

SEED = 900_000
"""First seed of the questions; those of the benchmark are above it."""
KINDS = {"size": SIZES, "colour": tuple(COLOURS), "shape": SHAPES}
LOOKS = 0.2
"""Share of the attention on the target, mean over the heads, from which on a layer is said to look at it.

An even spread gives the target about 0.03, and one of four heads that looks at nothing else gives it 0.25.
"""


@dataclass(frozen=True)
class Lookup:
    """What each layer attends to when a `locate` question has been read, without RoPE and with it.

    Attributes:
        free: Share of the last token's attention to visual tokens that is on the target's patches, by layer, with
            scores without RoPE.
        rope: The same with RoPE.
        heeded: By kind of word, the relative change of the state that enters each layer when the word is exchanged.
    """

    free: list[float]
    rope: list[float]
    heeded: dict[str, list[float]]

    @property
    def begins(self) -> int:
        """The first layer that looks at the target; the number of layers if there is none."""
        return next((layer for layer, share in enumerate(self.free) if share >= LOOKS), len(self.free))


def measure_lookup(model: LlavaForConditionalGeneration, count: int) -> Lookup:
    """Measure the lookup on some `locate` questions."""
    depth = model.config.text_config.num_hidden_layers
    shares = np.zeros((2, depth))
    moved: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in KINDS}
    for index in range(count):
        scene, question = sample("locate", SEED, index)
        assert question.box is not None, "localization asks for boxes"
        patch = model.config.vision_config.patch_size
        visible, kinds, change = run(model, to_pixels([scene]), question.text)
        cells = torch.from_numpy(box_cells(question.box, patch))
        shares += visible[..., cells].sum(-1).numpy() / count
        for kind, values in zip(kinds, change.T.double().numpy(), strict=True):
            moved[kind].append(values)
    heeded = {kind: np.mean(values, 0).round(3).tolist() for kind, values in moved.items()}
    return Lookup(*shares.round(3).tolist(), heeded)


def box_cells(box: tuple[int, int, int, int], patch: int) -> NDArray[np.bool_]:
    """Return which patches have their middle in a box, or if none has, the patch with the middle of the box."""
    middles = (np.arange(SIDE // patch) + 0.5) * patch
    left, top, right, bottom = box
    inside = ((middles >= top) & (middles < bottom))[:, None] & ((middles >= left) & (middles < right))[None]
    if not inside.any():
        inside[(top + bottom) // 2 // patch, (left + right) // 2 // patch] = True
    return inside.ravel()


@torch.no_grad()
def run(model: LlavaForConditionalGeneration, pixels: Tensor, question: str) -> tuple[Tensor, list[str], Tensor]:
    """Run the decoder on a question and its variants with one other word.

    Returns:
        The last token's attention to visual tokens without and with RoPE, averaged over heads, of shape
        (2, layers, patches), the kinds of words that were exchanged, and the changes, of shape (layers, kinds).
    """
    decoder = model.model.language_model
    words = question.split()
    texts, kinds = [words], []
    for kind, values in KINDS.items():
        found = [word for word in words if word in values]
        if len(found) == 1:
            other = values[(values.index(found[0]) + 1) % len(values)]
            texts.append([other if word == found[0] else word for word in words])
            kinds.append(kind)
    ids = torch.tensor([text.encode(" ".join([*part, "assistant:"])) for part in texts])
    seen = model.model.multi_modal_projector(see(model, pixels))
    start = decoder.embed_tokens.weight[BOS].expand(1, 1, -1)
    state = torch.cat([torch.cat([start, seen], 1).expand(len(ids), -1, -1), decoder.embed_tokens(ids)], 1)
    length, patches = state.shape[1], seen.shape[1]
    cosine, sine = (table[:, None] for table in decoder.rotary_emb(state, torch.arange(length)[None]))
    causal = torch.full((length, length), -1e9).triu(1)
    size = decoder.config.head_dim
    shares, moves = [], []
    for layer in decoder.layers:
        moves.append((state[1:, -1] - state[:1, -1]).norm(dim=-1) / state[:1, -1].norm(dim=-1))
        attention = layer.self_attn
        normed = norm(layer.input_layernorm, state)
        query, key, value = (
            part(normed).unflatten(-1, (-1, size)).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        plain = query[0, :, -1:] @ key[0].mT * size**-0.5
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        scores = query @ key.mT * size**-0.5 + causal
        shares.append(
            torch.stack([part[:, 0, 1 : 1 + patches].softmax(-1).mean(0) for part in (plain, scores[0, :, -1:])])
        )
        state = state + attention.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        state = state + layer.mlp(norm(layer.post_attention_layernorm, state))
    return torch.stack(shares, 1), kinds, torch.stack(moves)
