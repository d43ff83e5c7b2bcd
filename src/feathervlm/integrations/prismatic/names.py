"""Which tensor of a checkpoint becomes which of a stock LLaVA, and whether all are there.

Names only: Prismatic's modules, timm's vision transformers, and transformers' own towers, all to the names that
transformers 5 gives. Reads no file and builds no model.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.errors import PruningError

PROJECTOR, LLM, TOWER = "projector", "llm_backbone", "vision_backbone"
"""The parts of a checkpoint, as it names them."""

UNUSED = ("attn_pool.", "head.", "embeddings.position_ids")
"""Of a tower: how it pools (features are taken before that), and a buffer that old files hold."""


@dataclass(frozen=True)
class Move:
    """Where a tensor goes.

    Args:
        targets: names in LLaVA; several share the tensor's first dimension in equal parts.
        leading: dimensions of size 1 in front that the target lacks.
    """

    targets: tuple[str, ...]
    leading: int = 0

    def apply(self, tensor: Tensor) -> dict[str, Tensor]:
        """The targets' tensors.

        Raises:
            ValueError: if the tensor cannot be cut like that.
        """
        if any(size != 1 for size in tensor.shape[: self.leading]) or tensor.dim() <= self.leading:
            raise ValueError(f"does not begin with {self.leading} dimension(s) of size 1")
        tensor = tensor.flatten(0, self.leading)
        if tensor.shape[0] % len(self.targets):
            raise ValueError(f"cannot be cut into {len(self.targets)} equal parts")
        return dict(zip(self.targets, tensor.chunk(len(self.targets)), strict=True))


Moves = dict[str, Move]


def projector() -> Moves:
    """Of the two-layer projector."""
    return _pairs({"projector.0": "linear_1", "projector.2": "linear_2"}, "", "model.multi_modal_projector.")


def language(layers: int) -> Moves:
    """Of a Llama or Mistral; none has biases."""
    parts = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    names = ["embed_tokens", *(f"layers.{i}.{part}" for i in range(layers) for part in parts), "norm"]
    moves = {f"llm.model.{name}.weight": Move((f"model.language_model.{name}.weight",)) for name in names}
    return moves | {"llm.lm_head.weight": Move(("lm_head.weight",))}


def timm_tower(blocks: int, *, clip: bool) -> Moves:
    """Of a vision transformer in timm's names."""
    tower = "model.vision_tower."
    moves = {
        "patch_embed.proj.weight": Move((f"{tower}embeddings.patch_embedding.weight",)),
        "pos_embed": Move((f"{tower}embeddings.position_embedding.weight",), leading=1),
    }
    if clip:
        moves["cls_token"] = Move((f"{tower}embeddings.class_embedding",), leading=2)
        moves |= _pairs({"norm_pre": "pre_layrnorm"}, "", tower)
    else:
        moves["patch_embed.proj.bias"] = Move((f"{tower}embeddings.patch_embedding.bias",))
    same = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    same |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(blocks):
        layer = f"{tower}encoder.layers.{i}."
        moves |= _pairs(same, f"blocks.{i}.", layer)
        for kind in ("weight", "bias"):
            moves[f"blocks.{i}.attn.qkv.{kind}"] = Move(tuple(f"{layer}self_attn.{p}_proj.{kind}" for p in "qkv"))
    return moves | _pairs({"norm": "post_layernorm"}, "", tower)


def transformers_tower(blocks: int, *, clip: bool) -> Moves:
    """Of a vision transformer in transformers' names, without `vision_model.` in front."""
    names = [target for move in timm_tower(blocks, clip=clip).values() for target in move.targets]
    return {name.removeprefix("model.vision_tower."): Move((name,)) for name in names}


def _pairs(names: Mapping[str, str], source: str, target: str) -> Moves:
    """Weight and bias of modules."""
    return {
        f"{source}{old}.{kind}": Move((f"{target}{new}.{kind}",))
        for old, new in names.items()
        for kind in ("weight", "bias")
    }


def depth(names: Iterable[str], word: str) -> int:
    """One more than the highest number after a word, such as 32 for `layers.31.`; 0 if there is none."""
    return max((int(found[1]) + 1 for name in names if (found := re.search(rf"\b{word}\.(\d+)\.", name))), default=0)


def check(parts: Mapping[str, tuple[Iterable[str], Moves]]) -> None:
    """Hold every part's names against those that LLaVA takes.

    Args:
        parts: by name: the names that are there, and the moves that are known.

    Raises:
        PruningError: if names are unknown or missing; it lists them all.
    """
    unknown, missing = [], []
    for part, (names, moves) in parts.items():
        there = dict.fromkeys(names)
        unknown += [f"{part}: {name}" for name in there if name not in moves]
        missing += [f"{part}: {name}" for name in moves if name not in there]
    if unknown or missing:
        found = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
        raise PruningError(
            f"The checkpoint's tensors are not those of its config.json ({'; '.join(found)}); "
            "get the files again, or give the weights that belong to them."
        )
