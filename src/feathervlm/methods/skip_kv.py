"""Skip-KV: the prompt is read in full, and only generated tokens see fewer visual ones."""

from dataclasses import dataclass
from typing import ClassVar

from feathervlm.core import Keep, LastTokenAttention, Schedule, Stage, Top, check_keep
from feathervlm.methods.base import Method


@dataclass(frozen=True)
class SkipKV(Method):
    """Cut the keys and values of most visual tokens from every cache once the prompt has been read.

    The first generated token is unchanged to the last bit, because the prefill is that of the unpruned model. Later
    tokens read the keys and values that stay. It saves memory and decoding, and nothing of the prefill.

    Paper and code: Skip-Vision trains a model whose merged tokens skip the MLP, and leaves their keys and values out of
    decoding. This is the second half alone, without training; tokens stay by the attention of the last prompt token in
    the last layer, where the paper keeps the tokens that were not merged.

    Args:
        keep: Fraction or number of visual tokens whose keys and values stay.
        rope: Whether q and k are rotated for the score.
    """

    name: ClassVar[str] = "skip-kv"
    paper: ClassVar[str] = "2503.21817 (ICCV 2025), zwl666666/Skip-Vision"
    budget_parameter: ClassVar[str | None] = None

    keep: Keep = 0.25
    rope: bool = True

    def schedule(self) -> Schedule:
        check_keep(self.keep)
        return Schedule(Stage("end", Top(LastTokenAttention(rope=self.rope), self.keep), cache="all"))
