"""The inputs that a benchmark gives a model: one prompt with pictures, repeated to a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.inference import prompts

SEQUENCES = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""Inputs of shape (1, sequence). All other inputs belong to pictures, concatenated along their first dimension."""


@dataclass(frozen=True, eq=False)
class BenchPrompt:
    """One sample of a batch.

    Attributes:
        inputs: The model's inputs for a batch of 1.
        visual: Number of visual tokens.
        pictures: Number of pictures.
    """

    inputs: dict[str, Tensor]
    visual: int
    pictures: int = 1

    @property
    def length(self) -> int:
        """Number of tokens, text included."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def tail(self) -> int:
        """Number of tokens after the last run of equal ones, which is the text after the pictures."""
        ids = self.inputs["input_ids"][0]
        same = (ids[1:] == ids[:-1]).nonzero()
        return self.length - int(same[-1]) - 2 if len(same) else self.length

    def batch(self, size: int, ragged: bool, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return inputs with the prompt `size` times, each with another picture, so that methods keep other tokens.

        Args:
            size: Number of samples.
            ragged: Whether samples have different lengths: of every four, all but the first lose text at their end
                and are padded on the left.
            device: Device of the returned tensors.
            dtype: Type of the returned floating-point tensors.
        """
        rows = {name: value for name, value in self.inputs.items() if name in SEQUENCES}
        rows.setdefault("attention_mask", torch.ones_like(rows["input_ids"]))
        shifts = [sample % 4 * (self.tail // 5) if ragged else 0 for sample in range(size)]
        inputs = {name: torch.cat([_shift(row, shift) for shift in shifts]) for name, row in rows.items()}
        if not any(shifts) and bool(inputs["attention_mask"].all()):
            del inputs["attention_mask"]
        for name, value in self.inputs.items():
            if name not in SEQUENCES:
                inputs[name] = torch.cat([_vary(value, sample) for sample in range(size)])
        return {
            name: value.to(device, dtype=dtype if value.is_floating_point() else None) for name, value in inputs.items()
        }


def _shift(row: Tensor, shift: int) -> Tensor:
    """Return the row without its last `shift` tokens, padded on the left with as many zeros."""
    return torch.cat([torch.zeros_like(row[:, :shift]), row[:, : row.shape[1] - shift]], 1)


def _vary(value: Tensor, sample: int) -> Tensor:
    """Roll pixels a little, so that every sample shows another picture; return other tensors unchanged."""
    return value.roll(3 * sample, -1) if value.is_floating_point() else value


def picture_count(total: int, single: int) -> int:
    """Return how many pictures of `single` tokens have `total` tokens together.

    Raises:
        PruningError: If `total` is not a multiple of `single`.
    """
    if total % single or total < single:
        raise PruningError(
            f"A picture of this model has {single} visual tokens, so that no number of pictures has {total}; choose a "
            f"multiple of {single}."
        )
    return total // single


def picture_prompt(
    processor: Any, tokens: int | None, question: str, side: int, count_visual: Callable[[dict[str, Tensor]], int]
) -> BenchPrompt:
    """Build a prompt for a pretrained model, with as many pictures of noise as have the requested visual tokens.

    Args:
        processor: The model's own processor.
        tokens: Number of visual tokens; None for those of one picture.
        question: Text of the prompt.
        side: Side of a picture in pixels.
        count_visual: Returns the number of visual tokens in inputs.

    Raises:
        PruningError: If no number of pictures has that many tokens.
    """
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    marker = "" if getattr(processor, "chat_template", None) else str(getattr(processor, "image_token", "<image>"))

    def prepare(count: int) -> dict[str, Tensor]:
        return dict(prompts.prepare(processor, [prompts.Prompt(marker * count + question, (picture,) * count)]))

    single = prepare(1)
    count = 1 if tokens is None else picture_count(tokens, count_visual(single))
    inputs = single if count == 1 else prepare(count)
    return BenchPrompt(inputs, count_visual(inputs), count)
