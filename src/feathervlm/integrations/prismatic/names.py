"""Maps the names of a checkpoint's tensors to those of a stock LLaVA, and checks that all are present.

The checkpoint has the names of Prismatic's modules; its vision encoder those of timm or transformers. The targets are
the names of transformers 5.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from feathervlm.core.errors import PruningError

PROJECTOR, LLM, VISION = "projector", "llm_backbone", "vision_backbone"
"""Keys of the parts of a checkpoint."""

UNUSED = ("attn_pool.", "head.", "embeddings.position_ids")
"""Prefixes of tensors of a vision encoder that LLaVA does not use: pooling, and a buffer in old files."""


@dataclass(frozen=True)
class TensorMove:
    """The names that a tensor is written under.

    Attributes:
        targets: Names in LLaVA; several names get equal parts of the tensor's first dimension.
        leading: Number of leading dimensions of size 1 that the target does not have.
    """

    targets: tuple[str, ...]
    leading: int = 0

    def apply(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the targets by name.

        Raises:
            ValueError: If the tensor does not have such a shape.
        """
        if any(size != 1 for size in tensor.shape[: self.leading]) or tensor.dim() <= self.leading:
            raise ValueError(f"does not begin with {self.leading} dimension(s) of size 1")
        tensor = tensor.flatten(0, self.leading)
        if tensor.shape[0] % len(self.targets):
            raise ValueError(f"cannot be cut into {len(self.targets)} equal parts")
        return dict(zip(self.targets, tensor.chunk(len(self.targets)), strict=True))


Moves = dict[str, TensorMove]


def projector() -> Moves:
    """Return the names of the two-layer projector."""
    return _pairs({"projector.0": "linear_1", "projector.2": "linear_2"}, "", "model.multi_modal_projector.")


def language(layers: int) -> Moves:
    """Return the names of a Llama or Mistral, which have no biases."""
    parts = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    names = ["embed_tokens", *(f"layers.{i}.{part}" for i in range(layers) for part in parts), "norm"]
    moves = {f"llm.model.{name}.weight": TensorMove((f"model.language_model.{name}.weight",)) for name in names}
    return moves | {"llm.lm_head.weight": TensorMove(("lm_head.weight",))}


def timm_tower(blocks: int, *, clip: bool) -> Moves:
    """Return the names of a vision transformer of timm."""
    tower = "model.vision_tower."
    moves = {
        "patch_embed.proj.weight": TensorMove((f"{tower}embeddings.patch_embedding.weight",)),
        "pos_embed": TensorMove((f"{tower}embeddings.position_embedding.weight",), leading=1),
    }
    if clip:
        moves["cls_token"] = TensorMove((f"{tower}embeddings.class_embedding",), leading=2)
        moves |= _pairs({"norm_pre": "pre_layrnorm"}, "", tower)
    else:
        moves["patch_embed.proj.bias"] = TensorMove((f"{tower}embeddings.patch_embedding.bias",))
    same = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    same |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(blocks):
        layer = f"{tower}encoder.layers.{i}."
        moves |= _pairs(same, f"blocks.{i}.", layer)
        for kind in ("weight", "bias"):
            moves[f"blocks.{i}.attn.qkv.{kind}"] = TensorMove(tuple(f"{layer}self_attn.{p}_proj.{kind}" for p in "qkv"))
    return moves | _pairs({"norm": "post_layernorm"}, "", tower)


def transformers_tower(blocks: int, *, clip: bool) -> Moves:
    """Return the names of a vision transformer of transformers, without the prefix `vision_model.`."""
    names = [target for move in timm_tower(blocks, clip=clip).values() for target in move.targets]
    return {name.removeprefix("model.vision_tower."): TensorMove((name,)) for name in names}


def _pairs(names: Mapping[str, str], source: str, target: str) -> Moves:
    """Return the names of weight and bias of some modules."""
    return {
        f"{source}{old}.{kind}": TensorMove((f"{target}{new}.{kind}",))
        for old, new in names.items()
        for kind in ("weight", "bias")
    }


def depth(names: Iterable[str], word: str) -> int:
    """Return one more than the highest number after a word, such as 32 for `layers.31.`; 0 without such a name."""
    return max((int(match[1]) + 1 for name in names if (match := re.search(rf"\b{word}\.(\d+)\.", name))), default=0)


def check(parts: Mapping[str, tuple[Iterable[str], Moves]]) -> None:
    """Check the names of every part against those that LLaVA uses.

    Args:
        parts: For each part, the names of its tensors and the known moves.

    Raises:
        PruningError: If names are unknown or missing; the message lists them all.
    """
    unknown, missing = [], []
    for part, (names, moves) in parts.items():
        present = dict.fromkeys(names)
        unknown += [f"{part}: {name}" for name in present if name not in moves]
        missing += [f"{part}: {name}" for name in moves if name not in present]
    if unknown or missing:
        wrong = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
        raise PruningError(
            f"The checkpoint's tensors are not those of its config.json ({'; '.join(wrong)}); "
            "get the files again, or give the weights that belong to them."
        )
